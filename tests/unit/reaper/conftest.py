"""A host of directories, and processes to be found on it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.estates import Start, cgroup_host

from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_v1 import CgroupV1


@pytest.fixture
def cgroups(tmp_path: Path) -> CgroupHost:
    return cgroup_host(tmp_path / "cg")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _directories_hold_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CgroupV1, "kill", lambda _: None)


@pytest.fixture(autouse=True)
def _temporary_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that has some words among its arguments."""
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[bytes]:
            program = "import signal; print(flush=True); signal.pause()"
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield started
