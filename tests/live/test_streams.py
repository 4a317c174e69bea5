"""What goes in and out of real sandboxes."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from corral import EffectiveLimits, Job, Outcome
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=40, cpus=2)
MIB = 1024**2
DONE = Ending(outcome=Outcome.EXITED, exit_code=0)


def shell(script: str, stdin: bytes = b"") -> Job:
    return Job(argv=("/bin/sh", "-c", script), stdin=stdin)


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(field)


def memory_from_now_on() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return memory("VmRSS")


async def test_a_flood_on_both_streams_is_counted_and_its_head_and_tail_kept(
    sandboxes: Sandboxes, rootfs: Path, slowness: float
) -> None:
    size, kept = int(50 / slowness) * MIB, MIB
    script = f"yes out | head -c {size} & yes err | head -c {size} >&2; wait"
    out, err = b"out\n" * (kept // 8), b"err\n" * (kept // 8)
    before = memory_from_now_on()

    report = await sandboxes.run(shell(script), LIMITS, rootfs, Stop())

    assert report.ending == DONE
    assert (report.stdout.total, report.stderr.total) == (size, size)
    assert (report.stdout.gap, report.stderr.gap) == (kept // 2, kept // 2)
    assert report.stdout.data == out * 2
    assert report.stderr.data == err * 2
    assert memory("VmHWM") - before < 24 * MIB


async def test_five_megabytes_of_input_arrive_whole(sandboxes: Sandboxes, rootfs: Path) -> None:
    data = random.Random(5).randbytes(5 * MIB + 1)

    report = await sandboxes.run(shell("sha256sum", data), LIMITS, rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data.split() == [hashlib.sha256(data).hexdigest().encode(), b"-"]


async def test_input_that_nobody_reads_keeps_nobody(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await sandboxes.run(shell("exit 0", bytes(5 * MIB)), LIMITS, rootfs, Stop())

    assert report.ending == DONE


async def test_input_may_be_echoed_while_it_is_still_written(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    data = random.Random(6).randbytes(3 * MIB)
    limits = EffectiveLimits(wall_s=40, output_bytes=4 * MIB)

    report = await sandboxes.run(shell("cat", data), limits, rootfs, Stop())

    assert report.ending == DONE
    assert report.stdout.data == data


async def test_without_input_there_is_an_end_of_file(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await sandboxes.run(shell("cat; echo end"), LIMITS, rootfs, Stop())

    assert report.stdout.data == b"end\n"


async def test_any_byte_may_be_printed(sandboxes: Sandboxes, rootfs: Path) -> None:
    data = bytes(range(256)) * 16

    report = await sandboxes.run(shell("cat; cat /nothing", data), LIMITS, rootfs, Stop())

    assert report.stdout.data == data
    assert report.stderr.data == b"cat: can't open '/nothing': No such file or directory\n"


async def test_a_last_line_without_an_end_is_kept(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await sandboxes.run(shell("printf out; printf err >&2"), LIMITS, rootfs, Stop())

    assert (report.stdout.data, report.stderr.data) == (b"out", b"err")


async def test_no_output_need_be_kept(sandboxes: Sandboxes, rootfs: Path) -> None:
    limits = EffectiveLimits(wall_s=40, output_bytes=0)

    report = await sandboxes.run(shell("echo hello"), limits, rootfs, Stop())

    assert (report.stdout.data, report.stdout.total, report.stdout.gap) == (b"", 6, 0)


async def test_python_speaks_utf_8(sandboxes: Sandboxes, python_rootfs: Path) -> None:
    script = "import sys; print(sys.stdin.read(), sys.stdout.encoding, sys.argv[1])"
    job = Job(argv=("python3", "-c", script, "größer ≠ 大"), stdin="naïve ☃".encode())

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert report.stdout.data.decode() == "naïve ☃ utf-8 größer ≠ 大\n"


async def test_a_program_sees_its_own_environment_and_nothing_of_the_hosts(
    sandboxes: Sandboxes, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CORRAL_REDIS_URL", "NOTIFY_SOCKET", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD_"):
        monkeypatch.setitem(os.environ, name, "of-the-host")
    job = Job(argv=("env",), env={"MINE": "a=b c", "LANG": "C"})

    report = await sandboxes.run(job, LIMITS, rootfs, Stop())

    found = dict(line.split("=", 1) for line in report.stdout.data.decode().splitlines())
    assert found == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home",
        "LANG": "C",
        "MINE": "a=b c",
    }
