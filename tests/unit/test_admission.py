"""Whether a host takes another job: marks, hysteresis, the gate, and who is told."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from typing import get_args

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from corral_worker.admission import watch as watch_module
from corral_worker.admission.decision import HostSample, Shortage, shortages
from corral_worker.admission.gate import Gate
from corral_worker.admission.sampler import HostSampler
from corral_worker.admission.watch import AdmissionWatch
from corral_worker.marks import Marks
from corral_worker.service_manager import ServiceManager

SOON_S = 20.0
NONE: frozenset[Shortage] = frozenset()
MARKS = Marks(
    memory_bytes=100,
    disk_bytes=100,
    inodes=100,
    open_files=100,
    tasks=100,
    cpu_pressure=50,
    memory_pressure=50,
    io_pressure=50,
)
ENOUGH = HostSample(
    runsc=True,
    sandboxes=True,
    memory_bytes=1000,
    disk_bytes=1000,
    inodes=1000,
    open_files=1000,
    tasks=1000,
    cpu_pressure=1.0,
    memory_pressure=1.0,
    io_pressure=1.0,
)
LEFT = ("memory_bytes", "disk_bytes", "inodes", "open_files", "tasks")
PRESSURES = ("cpu_pressure", "memory_pressure", "io_pressure")
SAMPLES = st.builds(
    HostSample,
    runsc=st.booleans(),
    sandboxes=st.booleans(),
    **{name: st.none() | st.integers(0, 200) for name in LEFT},
    **{name: st.none() | st.floats(0, 100) for name in PRESSURES},
)
SHORT = st.frozensets(st.sampled_from(get_args(Shortage)))


def test_a_host_with_enough_of_everything_is_short_of_nothing() -> None:
    assert shortages(ENOUGH, MARKS, NONE) == NONE


@pytest.mark.parametrize("name", LEFT)
def test_what_falls_below_its_mark_is_short_until_it_is_well_above(name: str) -> None:
    short = frozenset({name.removesuffix("_bytes")})

    assert shortages(replace(ENOUGH, **{name: 100}), MARKS, NONE) == NONE
    assert shortages(replace(ENOUGH, **{name: 99}), MARKS, NONE) == short
    assert shortages(replace(ENOUGH, **{name: 124}), MARKS, short) == short  # type: ignore[arg-type]
    assert shortages(replace(ENOUGH, **{name: 125}), MARKS, short) == NONE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESSURES)
def test_a_pressure_above_its_mark_counts_until_it_is_well_below(name: str) -> None:
    short = frozenset({name})

    assert shortages(replace(ENOUGH, **{name: 50.0}), MARKS, NONE) == NONE
    assert shortages(replace(ENOUGH, **{name: 50.1}), MARKS, NONE) == short
    assert shortages(replace(ENOUGH, **{name: 40.1}), MARKS, short) == short  # type: ignore[arg-type]
    assert shortages(replace(ENOUGH, **{name: 40.0}), MARKS, short) == NONE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["runsc", "sandboxes"])
def test_what_no_job_can_do_without_is_a_shortage_that_no_mark_switches_off(name: str) -> None:
    off = Marks(**dict.fromkeys((*LEFT, *PRESSURES), 0))

    assert shortages(replace(ENOUGH, **{name: False}), off, NONE) == {name}


@given(sample=SAMPLES, before=SHORT)
def test_a_mark_of_0_is_switched_off(sample: HostSample, before: frozenset[Shortage]) -> None:
    off = Marks(**dict.fromkeys((*LEFT, *PRESSURES), 0))

    missing = {name for name in ("runsc", "sandboxes") if not getattr(sample, name)}
    assert shortages(sample, off, before) == missing


@given(sample=SAMPLES, before=SHORT)
def test_what_is_not_known_is_not_short(sample: HostSample, before: frozenset[Shortage]) -> None:
    unknown = {
        name.removesuffix("_bytes") for name in (*LEFT, *PRESSURES) if getattr(sample, name) is None
    }

    assert not shortages(sample, MARKS, before) & unknown


@given(sample=SAMPLES, before=SHORT)
def test_a_host_that_does_not_change_does_not_swing(
    sample: HostSample, before: frozenset[Shortage]
) -> None:
    once = shortages(sample, MARKS, before)

    assert shortages(sample, MARKS, once) == once


async def test_a_closed_gate_is_waited_for_and_an_open_one_is_not() -> None:
    gate = Gate()
    await gate.opened()
    passed = anyio.Event()
    gate.set(frozenset({"disk", "memory"}))

    async def passes() -> None:
        await gate.opened()
        passed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passes)
        await anyio.wait_all_tasks_blocked()
        # Short of less is short all the same.
        gate.set(frozenset({"disk"}))
        await anyio.wait_all_tasks_blocked()
        assert not passed.is_set()
        gate.set(NONE)
        with anyio.fail_after(SOON_S):
            await passed.wait()


class Host:
    """One whose sample a test sets."""

    def __init__(self) -> None:
        self.now = ENOUGH
        self.looks = 0

    def sample(self) -> HostSample:
        self.looks += 1
        return self.now


async def test_every_change_is_announced_and_logged_once() -> None:
    host, gate, told = Host(), Gate(), list[frozenset[Shortage]]()
    watch = AdmissionWatch(gate, MARKS, sample=host.sample, announce=told.append)

    with capture_logs() as log:
        await watch.look()
        assert (told, gate.short_of) == ([], NONE)
        host.now = replace(ENOUGH, disk_bytes=7, runsc=False)
        await watch.look()
        await watch.look()
        assert gate.short_of == {"disk", "runsc"}
        host.now = ENOUGH
        await watch.look()

    assert told == [frozenset({"disk", "runsc"}), NONE]
    assert gate.short_of == NONE
    unready, again = log
    assert (unready["event"], unready["log_level"]) == ("worker.unready", "warning")
    assert unready["short_of"] == ["disk", "runsc"]
    assert unready["disk_bytes"] == 7
    assert "start the worker again" in unready["remedy"]
    assert (again["event"], again["was_short_of"]) == ("worker.ready_again", ["disk", "runsc"])


async def test_a_job_that_failed_has_the_host_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "_LOOK_S", 10 * SOON_S)
    host, gate, told = Host(), Gate(), list[frozenset[Shortage]]()
    watch = AdmissionWatch(gate, MARKS, sample=host.sample, announce=told.append)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        with anyio.fail_after(SOON_S):
            while not host.looks:
                await anyio.sleep(0.001)
            host.now = replace(ENOUGH, runsc=False)
            watch.suspect()
            while not gate.short_of:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


def proc_of(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self" / "fd").mkdir(parents=True)
    for number in range(5):
        (proc / "self" / "fd" / str(number)).touch()
    (proc / "sys" / "fs").mkdir(parents=True)
    (proc / "sys" / "fs" / "file-nr").write_text("1000\t0\t9223372036854775807\n")
    (proc / "sys" / "kernel").mkdir()
    (proc / "sys" / "kernel" / "threads-max").write_text("5000\n")
    (proc / "sys" / "kernel" / "pid_max").write_text("1000\n")
    (proc / "loadavg").write_text("0.50 0.40 0.30 2/300 4711\n")
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     2048 kB\nSwapTotal: 0 kB\n")
    (proc / "pressure").mkdir()
    for name, figure in (("cpu", "1.50"), ("memory", "2.50"), ("io", "3.50")):
        (proc / "pressure" / name).write_text(
            f"some avg10={figure if name == 'cpu' else '99.00'} avg60=0.00 avg300=0.00 total=5\n"
            f"full avg10={figure} avg60=0.00 avg300=0.00 total=5\n"
        )
    return proc


def test_a_sample_is_what_the_host_says(tmp_path: Path) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    disk = os.statvfs(tmp_path)

    sample = HostSampler(
        tmp_path,
        runsc_is_same=lambda: True,
        sandboxes_start=lambda: False,
        proc=proc_of(tmp_path),
    ).sample()

    assert sample == HostSample(
        runsc=True,
        sandboxes=False,
        memory_bytes=2 * 1024**2,
        disk_bytes=sample.disk_bytes,
        inodes=sample.inodes,
        open_files=soft - 5,
        tasks=700,
        cpu_pressure=1.5,
        memory_pressure=2.5,
        io_pressure=3.5,
    )
    # Others write to this disk, too.
    assert 0 < (sample.disk_bytes or 0) < disk.f_blocks * disk.f_frsize


def test_a_host_with_few_files_left_in_all_says_that(tmp_path: Path) -> None:
    proc = proc_of(tmp_path)
    (proc / "sys" / "fs" / "file-nr").write_text("1000\t0\t1010\n")

    sampler = HostSampler(
        tmp_path, runsc_is_same=lambda: True, sandboxes_start=lambda: True, proc=proc
    )

    assert sampler.sample().open_files == 10


def test_a_kernel_that_tells_nothing_is_not_judged_and_a_lost_directory_is(
    tmp_path: Path,
) -> None:
    none = tmp_path / "none"
    sample = HostSampler(
        none, runsc_is_same=lambda: False, sandboxes_start=lambda: True, proc=none
    ).sample()

    assert sample == HostSample(
        runsc=False,
        sandboxes=True,
        memory_bytes=None,
        disk_bytes=0,
        inodes=None,
        open_files=None,
        tasks=None,
        cpu_pressure=None,
        memory_pressure=None,
        io_pressure=None,
    )


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:  # noqa: FBT001
    name = f"corral-test-{os.getpid()}"
    address = f"\0{name}" if abstract else str(tmp_path / name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(address)
        there.settimeout(SOON_S)
        manager = ServiceManager({"NOTIFY_SOCKET": address.replace("\0", "@")})

        manager.status("takes no jobs: short of disk")
        manager.ready()
        manager.stopping()

        assert [there.recv(100) for _ in range(3)] == [
            b"STATUS=takes no jobs: short of disk",
            b"READY=1",
            b"STOPPING=1\nSTATUS=draining",
        ]


@pytest.mark.parametrize("path", ["", "/nowhere/notify"])
def test_a_service_manager_that_is_not_there_is_no_error(path: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": path}).ready()
