"""Output that is on disk is read only when there is room for it, and never left open."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from corral import (
    CorralError,
    EffectiveLimits,
    ErrSandboxExecutionFailed,
    HostLimits,
    Job,
    Outcome,
    Policy,
)
from corral_worker.executor.executor import Attempt, Executor, Image, Runtime
from corral_worker.process.capture import BoundedOutput, Captured, Spool
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

MIB = 1024**2
LITTLE = Captured(data=b"little", total=6, gap=None)


class OneImage:
    digest = "sha256:abc"
    rootfs = Path("/images/abc")

    async def resolve(self, reference: str) -> Image:
        return self


class Told:
    """Sandboxes whose one report is given beforehand."""

    def __init__(self, report: Report) -> None:
        self._report = report

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        return self._report


@pytest.fixture
async def much(tmp_path: Path) -> AsyncIterator[Captured]:
    """Two MiB of output, of which one is kept; it is closed by the end of the test."""
    with BoundedOutput(MIB, Spool(tmp_path, Spool.new_writers())) as output:
        for _ in range(8):
            output.feed(b"y" * (MIB // 4))
            await output.settle()
        captured = output.captured()
    yield captured
    with pytest.raises(ValueError, match="closed"):
        assert captured.data


def report(
    stdout: Captured, stderr: Captured, ending: Ending | CorralError | None = None
) -> Report:
    return Report(
        ending=ending or Ending(outcome=Outcome.EXITED, exit_code=0),
        stdout=stdout,
        stderr=stderr,
        counters=Counters(cpu_s=0, peak_memory_bytes=1, peak_tasks=1, oom_kills=0),
        host_limits=HostLimits(memory_bytes=1, swap_bytes=0, cpus=1, tasks=1),
        start="cold",
        start_way="command_line",
        start_s=0,
        run_s=0,
        teardown_s=0,
        timing_unreliable=False,
        termination=None,
        leftovers=(),
        sandbox="corral-0123456789abcdef",
    )


def executor(told: Report) -> Executor:
    return Executor(
        policy_of=lambda _tenant: Policy(),
        images=OneImage(),
        sandboxes=Told(told),
        runtime=Runtime(runsc_version="release-1", platform="systrap", host="here"),
    )


def attempt(room: Callable[[int], Awaitable[None]] | None = None) -> Attempt:
    return Attempt(
        job=Job(argv=("yes",)),
        job_id="acme:1",
        tenant="acme",
        number=1,
        enqueued_at=dt.datetime.now(dt.UTC),
        room=room,
    )


async def test_room_is_asked_for_what_is_on_disk_before_it_is_read(much: Captured) -> None:
    asked: list[int] = []

    async def room(size: int) -> None:
        asked.append(size)

    result = await executor(report(LITTLE, much)).execute(attempt(room), Stop())

    assert asked == [MIB]
    assert (result.stdout, result.stderr) == (b"little", b"y" * MIB)
    assert (result.stderr_bytes, result.stderr_gap, result.truncated) == (2 * MIB, MIB // 2, True)


async def test_little_output_asks_for_no_room() -> None:
    async def room(size: int) -> None:
        raise AssertionError(size)

    result = await executor(report(LITTLE, LITTLE)).execute(attempt(room), Stop())

    assert (result.stdout, result.stderr) == (b"little", b"little")


async def test_who_gives_no_room_has_it_read_at_once(much: Captured) -> None:
    result = await executor(report(much, LITTLE)).execute(attempt(), Stop())

    assert len(result.stdout) == MIB


async def test_cancelled_while_it_waits_it_leaves_no_file_open(much: Captured) -> None:
    async def room(_size: int) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        await executor(report(much, LITTLE)).execute(attempt(room), Stop())

    assert scope.cancelled_caught


async def test_a_fault_is_told_without_reading_anything(much: Captured) -> None:
    fault = ErrSandboxExecutionFailed("it broke", retry_safety="started")

    async def room(size: int) -> None:
        raise AssertionError(size)

    with pytest.raises(ErrSandboxExecutionFailed, match="it broke"):
        await executor(report(much, LITTLE, fault)).execute(attempt(room), Stop())


async def test_a_disk_that_fails_is_a_fault_of_a_program_that_has_run(much: Captured) -> None:
    class Failing(Captured):
        @property
        def data(self) -> bytes:
            raise OSError(5, "Input/output error")

    told = replace(report(much, LITTLE), stderr=Failing(data=b"", total=0, gap=None))

    with pytest.raises(ErrSandboxExecutionFailed, match="Input/output error") as caught:
        await executor(told).execute(attempt(), Stop())

    assert caught.value.retry_safety == "started"
