"""Cgroups of the real kernel, whichever version it has mounted."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from corral import HostLimits
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_processes import wait_until_empty

pytestmark = pytest.mark.live

MIB = 1024**2
LIMITS = HostLimits(memory_bytes=64 * MIB, swap_bytes=0, cpus=0.5, tasks=60)


@pytest.fixture
def real_host() -> Iterator[CgroupHost]:
    """This host, with a parent of this test's own."""
    host = CgroupHost.of_this_host(f"/corral-test-{os.getpid()}-{secrets.token_hex(4)}")
    host.prepare()
    yield host
    host.release()
    if host.version == 2:
        assert host._unified is not None
        # It serves other workers, too, and stays.
        (host._unified / host.parent.lstrip("/")).rmdir()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert not [mount for mount in mounts if (Path(mount) / host.parent.lstrip("/")).exists()]


@pytest.fixture
def real(real_host: CgroupHost) -> Iterator[SandboxCgroup]:
    """A cgroup of this host, not made yet."""
    made = real_host.sandbox("one")
    yield made
    made.kill()
    assert wait_until_empty(made, 10)
    made.remove()


@pytest.fixture
def process(real: SandboxCgroup, real_host: CgroupHost) -> Iterator[subprocess.Popen[bytes]]:
    """A process in that cgroup, with a child that has a session of its own."""
    real.create(LIMITS)
    directories = {
        path
        for mount in {*real_host._hierarchies.values(), real_host._unified}
        if mount is not None and (path := mount / real.runsc_path.lstrip("/")).parent.exists()
    }
    if real_host.version == 2:
        for directory in directories:
            directory.mkdir()
    joins = "".join(f"echo $$ > {path}/cgroup.procs; " for path in directories if path.exists())
    script = f"{joins} setsid sleep 1000 & {joins} echo; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def test_a_sandbox_weighs_little_and_less_while_it_waits(
    real: SandboxCgroup, real_host: CgroupHost
) -> None:
    if real_host.version == 1:
        directory = real_host._hierarchies["cpu"] / real.runsc_path.lstrip("/")
        weight, expected = directory / "cpu.shares", [16, 2, 16]
    else:
        assert real_host._unified is not None
        directory = (real_host._unified / real.runsc_path.lstrip("/")).parent
        # One that has `cpu.idle` shows no weight.
        weight, expected = directory / "cpu.weight", [2, 0, 2]
    seen = []

    for step in (lambda: real.create(LIMITS), real.yield_processor, real.begin):
        step()
        seen.append(int(weight.read_text()))

    assert seen == expected


def test_real_limits_read_back_as_they_were_set(real: SandboxCgroup) -> None:
    held = real.create(LIMITS)

    assert held == replace(LIMITS, swap_bytes=held.swap_bytes)
    assert held.swap_bytes in {0, None}
    assert real.processes() == set()
    assert wait_until_empty(real, 0)


def test_real_memory_is_limited_in_whole_pages(real: SandboxCgroup) -> None:
    held = real.create(replace(LIMITS, memory_bytes=64 * MIB + 1))

    assert held.memory_bytes == 64 * MIB


def test_a_real_limit_the_kernel_refuses_is_told(real: SandboxCgroup) -> None:
    with pytest.raises(CgroupError, match="does not take '5"):
        real.create(replace(LIMITS, cpus=0.00005))


def test_real_processes_are_found_killed_and_counted(
    real: SandboxCgroup, process: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(CgroupError, match="cannot be removed: Device or resource busy"):
        real.remove()
    assert process.pid in real.processes()
    # Its child comes a little later.
    gives_up = time.monotonic() + 10
    while len(real.processes()) < 2 and time.monotonic() < gives_up:
        time.sleep(0.005)
    assert len(real.processes()) == 2
    assert not wait_until_empty(real, 0.01)

    real.kill()

    assert process.wait(10) == -signal.SIGKILL
    assert wait_until_empty(real, 10)
    assert real.counters().cpu_s > 0
    assert real.counters().oom_kills == 0
    # One that is dead but not reaped is seen no more, and keeps the directory for a moment.
    while time.monotonic() < gives_up + 10:
        with suppress(CgroupError):
            real.remove()
            break
        time.sleep(0.005)
    assert real.counters().cpu_s == 0


def test_what_is_gone_can_be_asked_killed_and_removed_again(real: SandboxCgroup) -> None:
    real.create(LIMITS)
    real.remove()

    real.kill()
    real.remove()

    assert real.processes() == set()
    assert real.counters() == Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)


def test_a_real_parent_that_is_in_use_stays(real: SandboxCgroup, real_host: CgroupHost) -> None:
    real.create(LIMITS)

    real_host.release()

    assert real.counters().peak_memory_bytes >= 0
    assert wait_until_empty(real, 0)
    real.remove()
