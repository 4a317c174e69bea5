"""Whenever a real sandbox is told to stop, it stops, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from corral import EffectiveLimits, ErrWorkerLost, Job, Outcome
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=50)
CANCELLED = (Ending(outcome=Outcome.CANCELLED), Ending(outcome=Outcome.CANCELLED, signal=9))
# From before the first system call to well after the program's start.
DELAYS_S = [0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.3]
SLEEPER = Job(argv=("/bin/sh", "-c", "echo begun; sleep 1000"))
STUBBORN = Job(
    argv=("/bin/sh", "-c", "trap '' TERM INT HUP; while :; do setsid sleep 1000 & sleep 1; done")
)
WITHIN_S = 20.0


async def running(runsc: Runsc) -> None:
    """Return when a sandbox's program runs."""
    with anyio.fail_after(120):
        while True:
            for file in runsc.root.glob("*.state"):
                name, _, _ = file.name.partition("_sandbox:")
                if runsc.state(name).status() == "running":
                    return
            await anyio.sleep(0.002)


async def stopped_after(
    run: Callable[[Stop], Awaitable[Report]], stop: Stop, ready: Callable[[], Awaitable[None]]
) -> tuple[Report, float]:
    """Cancel a run once it is ready, and return its report and how long that took."""
    reports: list[Report] = []

    async def first() -> None:
        reports.append(await run(stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await ready()
        stop.request("cancelled")
        asked = time.monotonic()
    return reports[0], time.monotonic() - asked


@pytest.mark.parametrize("job", [SLEEPER, STUBBORN], ids=["sleeper", "stubborn"])
async def test_a_running_program_is_cancelled_and_certified_dead(
    cold: ColdStart, runsc: Runsc, rootfs: Path, slowness: float, job: Job
) -> None:
    report, took_s = await stopped_after(
        lambda stop: cold.run(job, LIMITS, rootfs, stop), Stop(), lambda: running(runsc)
    )

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    certificate = report.termination
    assert certificate is not None
    assert certificate.cause == Outcome.CANCELLED
    assert certificate.requested_by == "caller"
    assert certificate.steps in {
        ("runsc_kill", "cgroup_kill"),
        # Told in the very moment in which the program began.
        ("process_kill", "cgroup_kill"),
    }
    assert certificate.verified_dead
    assert 0 < certificate.latency_s <= took_s
    assert took_s < WITHIN_S * slowness
    assert report.leftovers == ()


async def test_what_a_cancelled_program_printed_is_kept(
    cold: ColdStart, runsc: Runsc, rootfs: Path, slowness: float
) -> None:
    stop = Stop()
    flood = Job(argv=("/bin/sh", "-c", "echo first; yes"))

    async def ready() -> None:
        await running(runsc)
        await anyio.sleep(0.2 * slowness)

    report, _ = await stopped_after(lambda stop: cold.run(flood, LIMITS, rootfs, stop), stop, ready)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.stdout.data.startswith(b"first\ny\ny\n")


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_sandbox_that_is_being_started_can_be_cancelled_at_any_moment(
    cold: ColdStart, rootfs: Path, slowness: float, delay_s: float
) -> None:
    report, took_s = await stopped_after(
        lambda stop: cold.run(SLEEPER, LIMITS, rootfs, stop),
        Stop(),
        lambda: anyio.sleep(delay_s),
    )

    assert report.ending in CANCELLED
    assert report.termination is not None
    assert report.termination.verified_dead
    assert took_s < WITHIN_S * slowness


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_task_that_runs_a_sandbox_can_be_cancelled_at_any_moment(
    cold: ColdStart, rootfs: Path, slowness: float, delay_s: float
) -> None:
    with anyio.move_on_after(delay_s) as scope:
        await cold.run(STUBBORN, LIMITS, rootfs, Stop())

    assert scope.cancelled_caught
    assert anyio.current_time() - scope.deadline < WITHIN_S * slowness


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.5])
async def test_many_sandboxes_can_be_cancelled_together(
    cold: ColdStart, rootfs: Path, delay_s: float
) -> None:
    with anyio.move_on_after(delay_s) as scope:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(cold.run, SLEEPER, LIMITS, rootfs, Stop())

    assert scope.cancelled_caught


async def test_a_sandbox_can_be_cancelled_while_it_takes_input(
    cold: ColdStart, runsc: Runsc, rootfs: Path
) -> None:
    deaf = Job(argv=("sleep", "1000"), stdin=bytes(5 * 1024**2))

    report, _ = await stopped_after(
        lambda stop: cold.run(deaf, LIMITS, rootfs, stop), Stop(), lambda: running(runsc)
    )

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)


async def test_a_stop_that_was_asked_for_before_is_obeyed_at_once(
    cold: ColdStart, rootfs: Path
) -> None:
    stop = Stop()
    stop.request("cancelled")

    report = await cold.run(SLEEPER, LIMITS, rootfs, stop)

    assert report.ending == Ending(outcome=Outcome.CANCELLED)
    assert report.stdout.data == b""


async def test_a_worker_that_stops_says_that_the_program_had_begun(
    cold: ColdStart, runsc: Runsc, rootfs: Path
) -> None:
    stop = Stop()
    reports: list[Report] = []

    async def first() -> None:
        reports.append(await cold.run(SLEEPER, LIMITS, rootfs, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await running(runsc)
        stop.request("shutdown")

    ending = reports[0].ending
    assert isinstance(ending, ErrWorkerLost)
    assert (ending.retry_safety, ending.retryable) == ("started", False)
    assert reports[0].termination is None


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_worker_that_stops_never_calls_safe_what_may_have_begun(
    cold: ColdStart, rootfs: Path, delay_s: float
) -> None:
    stop = Stop()
    reports: list[Report] = []

    async def first() -> None:
        reports.append(await cold.run(SLEEPER, LIMITS, rootfs, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await anyio.sleep(delay_s)
        stop.request("shutdown")

    ending = reports[0].ending
    assert isinstance(ending, ErrWorkerLost)
    assert not (reports[0].stdout.data and ending.retryable)
