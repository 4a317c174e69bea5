"""Sandboxes that stand still while they wait: they cost nothing, and serve and end like others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from support.on_host import OnHost, running, running_ones
from support.waiting import LIMITS, READY_WITHIN_S, Prepare, ready

from corral import Job, Outcome
from corral_worker.admission.gate import Gate
from corral_worker.pool.pool import Budget, Pool
from corral_worker.pool.prepared import Shape
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.containers import SandboxGoneError
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.sentry import Sentry
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

CLOCKS = """
import time
began = time.monotonic()
print(time.time())
time.sleep(0.3)
print(time.monotonic() - began)
"""
CLOCK_ERROR_S = 0.05
"""What gVisor's clocks, which it keeps by itself, may differ from the host's."""
EXITED = Ending(outcome=Outcome.EXITED, exit_code=0)

End = Callable[[OnHost], Awaitable[None]]


async def until(seen: Callable[[], bool]) -> None:
    with anyio.fail_after(READY_WITHIN_S):
        while not seen():
            await anyio.sleep(0.005)


async def test_one_that_rests_takes_no_processor_and_one_that_does_not_goes_on_taking_some(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost
) -> None:
    async with ready(prepare) as resting:
        still = await running(runsc, cgroups)
        async with ready(prepare):
            (awake,) = (
                one for one in running_ones(runsc, cgroups) if one.identifier != still.identifier
            )
            resting.rest()
            await until(still.stands)
            before = (still.cgroup.counters().cpu_s, awake.cgroup.counters().cpu_s)

            def used() -> tuple[float, float]:
                return (
                    still.cgroup.counters().cpu_s - before[0],
                    awake.cgroup.counters().cpu_s - before[1],
                )

            await until(lambda: used()[1] > 0.05)
            assert not awake.stands()
            assert used()[0] < used()[1] / 10


async def test_a_program_in_one_that_has_rested_finds_the_clocks_right(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, python_rootfs: Path
) -> None:
    async with ready(prepare) as prepared:
        prepared.rest()
        await until((await running(runsc, cgroups)).stands)
        # gVisor looks at the host's clocks once a second, and here it has missed that.
        await anyio.sleep(2)
        async with prepared.taken() as start:
            began, from_s = time.time(), time.monotonic()
            report = await start.run(
                Job(argv=("python3", "-c", CLOCKS)), LIMITS, python_rootfs, Stop()
            )
            took_s, ended = time.monotonic() - from_s, time.time()

    assert report.ending == EXITED, report.stderr.data
    wall_time, slept_s = map(float, report.stdout.data.split())
    assert began - CLOCK_ERROR_S < wall_time < ended + CLOCK_ERROR_S
    assert 0.3 <= slept_s < took_s + CLOCK_ERROR_S


async def test_it_can_rest_and_wake_again_and_again_and_never_once_it_was_taken(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, rootfs: Path
) -> None:
    async with ready(prepare) as prepared:
        sandbox = await running(runsc, cgroups)
        for _ in range(3):
            prepared.rest()
            await until(sandbox.stands)
            prepared.wake()
            await until(lambda: not sandbox.stands())
        prepared.rest()
        async with prepared.taken() as start:
            prepared.rest()
            report = await start.run(Job(argv=("echo", "hello")), LIMITS, rootfs, Stop())

    assert (report.ending, report.stdout.data) == (EXITED, b"hello\n")


@pytest.mark.parametrize("delay_s", [0, 0.003, 0.01, 0.03])
async def test_a_program_in_one_that_has_rested_can_be_cancelled_at_any_moment(
    prepare: Prepare, rootfs: Path, delay_s: float
) -> None:
    stop = Stop()
    async with ready(prepare) as prepared, anyio.create_task_group() as tasks:
        prepared.rest()

        async def ask() -> None:
            await anyio.sleep(delay_s)
            stop.request("cancelled")

        async with prepared.taken() as start:
            tasks.start_soon(ask)
            report = await start.run(Job(argv=("sleep", "1000")), LIMITS, rootfs, stop)

    assert isinstance(report.ending, Ending)
    assert report.ending.outcome == Outcome.CANCELLED
    assert report.termination is not None
    assert report.termination.verified_dead


async def test_where_the_host_cannot_say_which_process_it_is_it_stays_awake_and_serves(
    prepare: Prepare,
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(sentry: Sentry) -> None:
        raise OSError("no file descriptor")

    monkeypatch.setattr(Sentry, "find", find)

    async with ready(prepare) as prepared:
        prepared.rest()
        assert not (await running(runsc, cgroups)).stands()
        async with prepared.taken() as start:
            report = await start.run(Job(argv=("true",)), LIMITS, rootfs, Stop())

    assert report.ending == EXITED


# Its end. That nothing is left on the host is looked at after every test.


async def test_one_that_rests_can_be_dismissed(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost
) -> None:
    with anyio.fail_after(READY_WITHIN_S):
        async with ready(prepare) as prepared:
            prepared.rest()
            await until((await running(runsc, cgroups)).stands)


async def test_one_that_rests_goes_with_the_task_that_owns_it(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost
) -> None:
    prepared = prepare(Shape.of(LIMITS))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prepared.live, prepared.rest)
        await until((await running(runsc, cgroups)).stands)
        tasks.cancel_scope.cancel()


async def _kill_runsc(sandbox: OnHost) -> None:
    os.kill(sandbox.runsc_run(), signal.SIGKILL)


async def _kill_cgroup(sandbox: OnHost) -> None:
    sandbox.cgroup.kill()


@pytest.mark.parametrize("end", [OnHost.kill_sentry, _kill_cgroup, _kill_runsc])
async def test_the_death_of_one_that_rests_is_noticed(
    prepare: Prepare, runsc: Runsc, cgroups: CgroupHost, end: End
) -> None:
    prepared = prepare(Shape.of(LIMITS))

    async with reaping():
        with anyio.fail_after(READY_WITHIN_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prepared.live, prepared.rest)
                sandbox = await running(runsc, cgroups)
                await until(sandbox.stands)
                await end(sandbox)
        with pytest.raises(SandboxGoneError):
            await AsyncExitStack().enter_async_context(prepared.taken())


# In a pool


async def test_a_pool_has_all_but_one_of_a_shape_rest_and_gives_each_to_a_job_of_a_burst(
    prepare: Prepare, runsc: Runsc, cold: ColdStart, cgroups: CgroupHost, rootfs: Path
) -> None:
    budget = Budget(sandboxes=3, slots=100)
    first: list[Report] = []
    second: list[Report] = []

    async with Pool.open(
        cold=cold, prepare=prepare, runsc=runsc, budget=budget, gate=Gate(), expected=LIMITS
    ) as pool:

        async def burst(reports: list[Report]) -> None:
            async def one() -> None:
                job = Job(argv=("sh", "-c", "test -e /tmp/mark && exit 99; touch /tmp/mark"))
                reports.append(await pool.run(job, LIMITS, rootfs, Stop()))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(one)

        def one_awake() -> bool:
            standing = [sandbox.stands() for sandbox in running_ones(runsc, cgroups)]
            return sorted(standing) == [False, True, True]

        await burst(first)
        await until(one_awake)
        await burst(second)
        await until(one_awake)

    assert [report.ending for report in (*first, *second)] == [EXITED] * 6
    assert [report.start for report in second] == ["warm"] * 3
