"""A program's file in memory, in huge pages."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from corral_worker.process import huge_pages
from corral_worker.process.huge_pages import in_huge_pages

TRUE = Path(shutil.which("true") or "/bin/true").resolve()


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_the_copy_is_the_program_and_can_be_executed_by_children() -> None:
    before = mounts()
    with in_huge_pages(TRUE) as copy:
        assert copy is not None
        assert copy.name == TRUE.name
        assert copy.read_bytes() == TRUE.read_bytes()
        assert stat.S_IMODE(copy.stat().st_mode) == 0o555
        # Of its file system nobody else knows.
        assert mounts() == before
        subprocess.run([copy], check=True, timeout=60)


def test_what_becomes_of_the_program_changes_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(TRUE, program)
    with in_huge_pages(program) as copy:
        assert copy is not None
        program.unlink()
        subprocess.run([copy], check=True, timeout=60)


def test_it_is_gone_with_the_block() -> None:
    with in_huge_pages(TRUE) as copy:
        assert copy is not None
        descriptor = int(copy.parent.name)

    assert not copy.exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_script_has_no_copy_for_it_may_ask_for_its_own_path(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")

    with in_huge_pages(script) as copy:
        assert copy is None


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_where_the_kernel_refuses_there_is_none(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huge_pages, "_call", refuse)

    with in_huge_pages(TRUE) as copy:
        assert copy is None


def test_where_there_is_no_room_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Path("/proc/self/fd").iterdir())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "sendfile", full)

    with in_huge_pages(TRUE) as copy:
        assert copy is None
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_program_that_is_not_there_has_none(tmp_path: Path) -> None:
    with in_huge_pages(tmp_path / "none") as copy:
        assert copy is None
