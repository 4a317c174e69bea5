"""Limits hold in real sandboxes, and the report says which one a program met."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from corral import EffectiveLimits, Job, Outcome
from corral_worker.sandbox.bundle import host_tasks
from corral_worker.sandbox.lifecycle import ColdStart, Sandboxes
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

MIB = 1024**2
# Version 2 may go over a limit for a moment: a page, as a rule (cgroup-v2.rst, "memory.max").
KERNEL_SLACK = MIB
DONE = Ending(outcome=Outcome.EXITED, exit_code=0)


def shell(script: str) -> Job:
    return Job(argv=("/bin/sh", "-c", script))


def python(script: str) -> Job:
    return Job(argv=("python3", "-c", script))


async def test_the_host_is_told_the_limits_and_asked_for_them_again(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(memory_bytes=96 * MIB, cpus=0.5, pids=20)

    report = await sandboxes.run(shell("exit 0"), limits, rootfs, Stop())

    held = report.host_limits
    assert (held.memory_bytes, held.cpus, held.tasks) == (96 * MIB, 0.5, host_tasks(limits))
    assert held.swap_bytes in {0, None}


async def test_a_program_that_runs_too_long_is_killed_and_its_output_kept(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=2)

    script = "echo partial; echo an error >&2; sleep 1000"

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)
    assert report.stdout.data == b"partial\n"
    # And nothing that runsc may have to say of the end.
    assert (report.stderr.data, report.stderr.total) == (b"an error\n", 9)
    assert report.termination is not None
    assert report.termination.cause == Outcome.WALL_TIMEOUT
    assert report.termination.requested_by == "limit"
    # On a slow machine it has to clean up, too, behind a runsc that has not come to it.
    assert report.termination.steps[:2] == ("runsc_kill", "cgroup_kill")
    assert report.termination.verified_dead


async def test_the_wall_limit_counts_from_the_programs_start(cold: ColdStart, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=0.05)

    report = await cold.run(shell("sleep 1000"), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)
    # No sandbox boots in that time: one that counted from there would never run.
    assert report.start_s > limits.wall_s
    assert report.run_s >= limits.wall_s


async def test_a_program_that_ignores_signals_is_killed_all_the_same(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    script = "trap '' TERM INT HUP QUIT; while :; do sleep 1 & wait; done"

    report = await sandboxes.run(shell(script), EffectiveLimits(wall_s=0.5), rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)


async def test_processor_time_is_limited_apart_from_wall_time(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=40, cpu_time_s=0.5, cpus=2)
    script = "echo begun; while :; do :; done & while :; do :; done"

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.CPU_TIMEOUT, signal=9)
    assert report.stdout.data == b"begun\n"
    assert report.counters.cpu_s >= 0.5
    assert report.termination is not None
    assert report.termination.requested_by == "limit"


@pytest.mark.parametrize("program", ["x = b'x' * (200 << 20)", "x = [bytes(1000)] * (100 << 20)"])
async def test_a_program_that_takes_too_much_memory_is_out_of_memory(
    sandboxes: Sandboxes, python_rootfs: Path, program: str
) -> None:
    limits = EffectiveLimits(wall_s=40, memory_bytes=64 * MIB)

    report = await sandboxes.run(
        python(f"print('begun', flush=True)\n{program}"), limits, python_rootfs, Stop()
    )

    assert isinstance(report.ending, Ending)
    assert report.ending.outcome == Outcome.OUT_OF_MEMORY
    assert (report.stdout.data, report.stderr.data) == (b"begun\n", b"")
    assert report.counters.oom_kills > 0
    assert report.counters.peak_memory_bytes <= limits.memory_bytes + KERNEL_SLACK
    assert report.termination is None


async def test_files_in_memory_count_as_memory(sandboxes: Sandboxes, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, memory_bytes=64 * MIB, disk_bytes=512 * MIB)

    report = await sandboxes.run(shell("cat /dev/zero > /tmp/file"), limits, rootfs, Stop())

    assert isinstance(report.ending, Ending)
    assert report.ending.outcome == Outcome.OUT_OF_MEMORY
    assert report.counters.peak_memory_bytes <= limits.memory_bytes + KERNEL_SLACK


async def test_too_little_memory_to_boot_is_the_limits_doing(cold: ColdStart, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, memory_bytes=2 * MIB)

    report = await cold.run(shell("exit 0"), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.OUT_OF_MEMORY)


async def test_a_fork_bomb_hits_the_limit_of_processes(sandboxes: Sandboxes, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, pids=8)
    script = "echo begun; while :; do sleep 1000 & done"

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.PIDS_EXCEEDED)
    assert report.stdout.data == b"begun\n"


@pytest.mark.parametrize("pids", [1, 2, 8, 20])
async def test_as_many_processes_as_the_limit_says_may_run(
    sandboxes: Sandboxes, rootfs: Path, pids: int
) -> None:
    limits = EffectiveLimits(wall_s=40, pids=pids)
    # The shell itself is one of them; it counts them without any other.
    script = f"""
        i=1; while [ $i -lt {pids} ]; do sleep 1000 & i=$((i+1)); done
        set -- /proc/[0-9]*; echo $#
    """

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data == f"{pids}\n".encode()


@pytest.mark.parametrize("pids", [8, 20])
async def test_as_many_python_processes_as_the_limit_says_may_run(
    sandboxes: Sandboxes, python_rootfs: Path, slowness: float, pids: int
) -> None:
    limits = EffectiveLimits(wall_s=40, pids=pids, memory_bytes=512 * MIB)
    script = f"""
import subprocess
children = [subprocess.Popen(["sleep", "{2 * slowness}"]) for _ in range({pids - 1})]
print(sum(child.poll() is None for child in children), flush=True)
print(sum(child.wait() for child in children))
"""

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data == f"{pids - 1}\n0\n".encode()


SHARES_MEMORY = """
import multiprocessing
from multiprocessing.shared_memory import SharedMemory

with multiprocessing.Lock():
    print("locked")
ours = SharedMemory(create=True, size=1 << 20)
theirs = SharedMemory(name=ours.name)
ours.buf[:6] = b"shared"
print(bytes(theirs.buf[:6]).decode())
theirs.close()
ours.close()
ours.unlink()
"""


async def test_processes_may_share_memory_and_locks(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    report = await sandboxes.run(
        python(SHARES_MEMORY), EffectiveLimits(wall_s=40), python_rootfs, Stop()
    )

    assert (report.ending, report.stderr.data) == (DONE, b"")
    assert report.stdout.data == b"locked\nshared\n"


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm"])
async def test_a_writable_directory_is_full_at_its_limit(
    sandboxes: Sandboxes, rootfs: Path, place: str
) -> None:
    limits = EffectiveLimits(wall_s=40, disk_bytes=2 * MIB)
    script = f"cat /dev/zero > {place}/file; wc -c < {place}/file"

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data == f"{2 * MIB}\n".encode()
    assert report.stderr.data.endswith(b"No space left on device\n")


FILLS_AND_GOES_ON = """
import time
for place in ("/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm"):
    try:
        with open(f"{place}/file", "wb", 0) as file:
            while file.write(bytes(1 << 20)): pass
    except OSError as error:
        print(place, error.strerror, flush=True)
        time.sleep(GOES_ON_AFTER)
time.sleep(1000)
"""


async def test_what_all_writable_directories_hold_together_is_limited(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=60, memory_bytes=512 * MIB, disk_bytes=48 * MIB)
    script = FILLS_AND_GOES_ON.replace("GOES_ON_AFTER", "0")

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.DISK_EXCEEDED, signal=9)
    assert report.stdout.data.startswith(b"/workspace No space left on device\n")
    assert report.termination is not None
    assert report.termination.requested_by == "limit"
    assert report.termination.verified_dead


async def test_a_program_may_fill_one_directory_and_note_that_in_another(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=60, memory_bytes=512 * MIB, disk_bytes=48 * MIB)
    script = """
import time
try:
    with open("/tmp/file", "wb", 0) as file:
        while file.write(bytes(1 << 20)): pass
except OSError as error:
    print(error.strerror, file=open("/workspace/log", "w"))
time.sleep(1)
print(open("/workspace/log").read())
"""

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data == b"No space left on device\n\n"


async def test_memory_that_is_no_file_is_not_counted_as_disk(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=60, memory_bytes=512 * MIB, disk_bytes=16 * MIB)
    script = "import time; x = b'x' * (100 << 20); time.sleep(1); print(len(x) >> 20)"

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert (report.ending, report.stdout.data) == (DONE, b"100\n")
    assert report.counters.peak_memory_bytes > 100 * MIB


async def test_a_flood_of_empty_files_is_bounded_by_memory(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=80, cpus=2, memory_bytes=32 * MIB)
    script = "print('begun', flush=True)\nn = 0\nwhile 1: open(f'/tmp/{n}', 'w').close(); n += 1"

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert isinstance(report.ending, Ending)
    assert report.ending.outcome == Outcome.OUT_OF_MEMORY
    assert report.stdout.data == b"begun\n"


async def test_one_file_is_limited(sandboxes: Sandboxes, python_rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, file_bytes=MIB)
    script = """
import os, resource, sys
print(resource.getrlimit(resource.RLIMIT_FSIZE))
with open("/tmp/file", "wb", 0) as file:
    for ways in (lambda: file.write(bytes(700 << 10)), lambda: file.truncate(2 << 20)):
        try:
            while True: ways()
        except OSError as error:
            print(error.strerror, os.path.getsize("/tmp/file"))
sys.stdout.flush()
sys.stdout.buffer.write(bytes(2 << 20))
"""

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert report.ending == DONE
    said = f"({MIB}, {MIB})\n" + 2 * f"File too large {MIB}\n"
    assert report.stdout.data.startswith(said.encode())
    # A pipe is no file.
    assert report.stdout.total == len(said) + 2 * MIB


async def test_a_program_that_does_not_expect_a_limit_of_one_file_dies_of_its_signal(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=40, file_bytes=MIB)
    job = Job(argv=("dd", "if=/dev/zero", "of=/tmp/file", "bs=700k", "count=2"))

    report = await sandboxes.run(job, limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.SIGNALLED, signal=signal.SIGXFSZ)


@pytest.mark.parametrize("redirect", ["", ">&2"], ids=["stdout", "stderr"])
async def test_a_flood_of_output_is_killed_at_the_limit_that_kills(
    sandboxes: Sandboxes, rootfs: Path, redirect: str
) -> None:
    limits = EffectiveLimits(wall_s=60, output_bytes=1000, output_kill_bytes=2 * MIB)

    report = await sandboxes.run(
        shell(f"echo begun; cat /dev/zero {redirect}"), limits, rootfs, Stop()
    )

    assert report.ending == Ending(outcome=Outcome.OUTPUT_EXCEEDED, signal=9)
    assert report.stdout.data.startswith(b"begun\n")
    assert report.stdout.total + report.stderr.total > 2 * MIB
    assert len(report.stdout.data) <= 1000
    assert report.termination is not None
    assert report.termination.cause == Outcome.OUTPUT_EXCEEDED


async def test_open_files_are_limited(sandboxes: Sandboxes, python_rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, open_files=32)
    script = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    script += "\nfiles = [open('/dev/null') for _ in range(40)]"

    report = await sandboxes.run(python(script), limits, python_rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=1)
    assert report.stdout.data == b"(32, 32)\n"
    assert b"Too many open files" in report.stderr.data


async def test_a_program_sees_its_own_memory_and_processors(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=40, memory_bytes=128 * MIB, cpus=1)
    script = "awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo; nproc"

    report = await sandboxes.run(shell(script), limits, rootfs, Stop())

    memory, processors = map(int, report.stdout.data.split())
    assert memory == 128 * MIB
    # gVisor never shows fewer than two, for its own sake.
    assert processors == min(2, os.cpu_count() or 1)


async def test_a_small_share_of_a_processor_is_no_hindrance_to_a_quick_end(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    limits = EffectiveLimits(wall_s=1, cpus=0.1)

    report = await sandboxes.run(shell("while :; do :; done"), limits, rootfs, Stop())

    assert report.ending == Ending(outcome=Outcome.WALL_TIMEOUT, signal=9)
    assert report.termination is not None
    assert report.termination.verified_dead
