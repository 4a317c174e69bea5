"""corral doctor on this very host, and with what it needs taken away."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from corral_worker.doctor.finding import Finding
from corral_worker.sandbox.cgroup_host import CgroupHost

SLOWNESS = float(os.environ.get("CORRAL_TEST_SLOWNESS", "1"))
"""How many times as long as elsewhere things may take here: more than 1 under emulation."""
pytestmark = [pytest.mark.live, pytest.mark.timeout(500 * SLOWNESS)]


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    passed: bool
    findings: tuple[Finding, ...]

    def status(self, name: str) -> str:
        return next(finding.status for finding in self.findings if finding.name == name)


@pytest.fixture
def environ(state_dir: Path, rootfs: Path, python_rootfs: Path, tmp_path: Path) -> dict[str, str]:
    """Environment of a host of this test's own, with this machine's images."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {
        **kept,
        "TMPDIR": str(tmp_path),
        "CORRAL_STATE_DIR": str(state_dir),
        "CORRAL_IMAGE_DIR": str(rootfs.parents[2]),
        "CORRAL_CGROUP_PARENT": f"/corral-test-{secrets.token_hex(4)}",
        "CORRAL_START_TIMEOUT_S": str(30 * SLOWNESS),
    }


@pytest.fixture
def cgroups_of(environ: dict[str, str]) -> Callable[[], set[str]]:
    """Tell what there is below the parent of this test's own."""
    return CgroupHost.of_this_host(environ["CORRAL_CGROUP_PARENT"]).names


def wait_until(seen: Callable[[], bool]) -> None:
    gives_up = time.monotonic() + 100 * SLOWNESS
    while not seen():
        assert time.monotonic() < gives_up
        time.sleep(0.01)


def doctor(environ: dict[str, str], *arguments: str) -> tuple[int, Document]:
    done = subprocess.run(
        [sys.executable, "-m", "corral_worker", "doctor", "--json", *arguments],
        env=environ,
        capture_output=True,
        check=False,
        timeout=200 * SLOWNESS,
    )
    assert done.stderr == b""
    return done.returncode, msgspec.json.decode(done.stdout, type=Document)


def test_this_host_can_run_jobs_and_is_left_as_it_was(
    environ: dict[str, str], state_dir: Path, redis_url: str
) -> None:
    status, document = doctor(environ | {"CORRAL_REDIS_URL": redis_url})

    assert [each for each in document.findings if each.status == "fail"] == []
    assert (status, document.passed) == (0, True)
    assert document.status("leftovers") == "ok"
    assert {each.name.partition(".")[0] for each in document.findings} == {
        *("settings", "host", "cgroups", "limits", "runsc", "tools", "images", "redis"),
        "leftovers",
    }
    assert list(state_dir.iterdir()) == []


def test_without_redis_and_settings_the_host_is_looked_at_all_the_same(
    environ: dict[str, str],
) -> None:
    status, document = doctor(environ)

    assert status == 0
    assert document.status("redis") == "warn"
    assert document.status("runsc.sandbox") == "ok"


def test_what_a_dead_worker_left_is_found_before_it_is_removed(
    environ: dict[str, str], state_dir: Path
) -> None:
    (state_dir / "w-0123abcd").mkdir(mode=0o700)

    _, before = doctor(environ)
    _, after = doctor(environ)

    assert (before.status("leftovers"), after.status("leftovers")) == ("warn", "ok")


TRIES_LIMITS = """
import os, signal
from corral_worker.doctor.limits import look_at_limits
from corral_worker.settings import load

findings = look_at_limits(load(None, {**os.environ, "CORRAL_REDIS_URL": "redis://unused"}))
while next(findings).name != "limits.memory":
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_doctor_left_that_was_killed_is_removed_by_the_next(
    environ: dict[str, str], cgroups_of: Callable[[], set[str]]
) -> None:
    killed = subprocess.run([sys.executable, "-c", TRIES_LIMITS], env=environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(cgroups_of()) == 2

    _, before = doctor(environ)
    _, after = doctor(environ)

    assert (before.status("leftovers"), after.status("leftovers")) == ("warn", "ok")
    assert cgroups_of() == set()


def test_what_a_prover_left_that_was_killed_is_removed_by_the_next_doctor(
    environ: dict[str, str], state_dir: Path, tmp_path: Path, cgroups_of: Callable[[], set[str]]
) -> None:
    prove = [sys.executable, "-m", "corral_worker", "doctor", "--prove"]
    with subprocess.Popen(
        [*prove, "--only", "ignores_signals", "--slowness", "30"], env=environ
    ) as prover:
        wait_until(
            lambda: any(
                b'"status":"running"' in file.read_bytes()
                for file in state_dir.glob("w-*/r/*.state")
            )
        )
        prover.kill()
    assert list(tmp_path.iterdir()) != []
    assert cgroups_of() != set()

    _, before = doctor(environ)
    _, after = doctor(environ)

    assert (before.status("leftovers"), after.status("leftovers")) == ("warn", "ok")
    assert list(state_dir.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    assert cgroups_of() == set()


def test_a_lack_is_a_failure_under_strict(environ: dict[str, str]) -> None:
    status, document = doctor(environ, "--strict")

    assert (status, document.passed) == (1, False)


def test_without_runsc_that_is_what_is_found(environ: dict[str, str], state_dir: Path) -> None:
    status, document = doctor(environ | {"CORRAL_RUNSC_PATH": str(state_dir / "runsc")})

    bad = {each.name for each in document.findings if each.status == "fail"}
    assert (status, bad) == (1, {"runsc.version", "runsc.sandbox"})


def test_without_images_that_is_what_is_found(environ: dict[str, str], state_dir: Path) -> None:
    status, document = doctor(environ | {"CORRAL_IMAGE_DIR": str(state_dir / "images")})

    bad = {each.name for each in document.findings if each.status == "fail"}
    assert (status, bad) == (1, {"images", "runsc.sandbox"})


def test_a_host_whose_limits_do_not_hold_is_told_beforehand(environ: dict[str, str]) -> None:
    # A parent whose name the kernel refuses, for it is that of a control file.
    taken = "tasks" if Path("/sys/fs/cgroup/pids/tasks").exists() else "cgroup.procs"

    status, document = doctor(environ | {"CORRAL_CGROUP_PARENT": f"/{taken}"})

    bad = {each.name for each in document.findings if each.status == "fail"}
    assert status == 1
    assert "runsc.sandbox" in bad
    assert bad & {"cgroups.parent", "cgroups.limits"}


def test_the_document_is_json_of_one_line(environ: dict[str, str]) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "corral_worker", "doctor", "--json"],
        env=environ,
        capture_output=True,
        check=True,
        timeout=200 * SLOWNESS,
    ).stdout

    assert said.count(b"\n") == 1
    assert json.loads(said).keys() == {"passed", "findings"}
