from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from corral import EffectiveLimits, HostLimits, Job, Outcome
from corral_worker.admission.decision import Shortage
from corral_worker.admission.gate import Gate
from corral_worker.pool import pool as pool_module
from corral_worker.pool.pool import Budget, Pool
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.process.capture import Captured
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.containers import SandboxGoneError
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.warm import WarmStart

JOB = Job(argv=("true",))
LIMITS = EffectiveLimits()
OTHER = EffectiveLimits(memory_bytes=64 * 2**20)
ROOTFS = Path("/images/rootfs.erofs")
SOON_S = 20.0
COLD = Report(
    ending=Ending(outcome=Outcome.EXITED, exit_code=0),
    stdout=Captured(data=b"", total=0, gap=None),
    stderr=Captured(data=b"", total=0, gap=None),
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
    sandbox="corral-one",
)
WARM = msgspec.structs.replace(COLD, start="warm")


class Ways:
    """Stands in for both ways to run a program: ends when it is told to."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.may_end = anyio.Event()
        self.may_end.set()
        self.gone = False

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        if self.gone:
            raise SandboxGoneError("died")
        await self.may_end.wait()
        return self._report


class Start(WarmStart):
    """A start that needs no sandbox."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        return await self._ways.run(job, limits, rootfs, stop)


class Waiting(Prepared):
    """A sandbox that is there as soon as somebody asks for it."""

    def __init__(self, shape: Shape, host: Host) -> None:
        self.shape = shape
        self._host = host
        self._over = anyio.Event()
        self.rests = False
        host.prepared.append(self)

    async def live(self, ready: Callable[[], None]) -> None:
        if self.shape in self._host.impossible:
            raise NotPreparedError("no memory")
        self._host.alive += 1
        try:
            ready()
            await self._over.wait()
        finally:
            self._host.alive -= 1
            self._host.prepared.remove(self)

    def die(self) -> None:
        self._over.set()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[WarmStart]:
        self.wake()
        try:
            yield Start(self._host.warm)
        finally:
            self._over.set()

    def rest(self) -> None:
        self.rests = True

    def wake(self) -> None:
        self.rests = False

    def dismiss(self) -> None:
        self._host.dismissed += 1
        self._over.set()


class Host:
    """What a pool works with."""

    def __init__(self, runsc: Runsc) -> None:
        self.runsc = runsc
        self.gate = Gate()
        self.cold = Ways(COLD)
        self.warm = Ways(WARM)
        self.impossible: set[Shape] = set()
        self.made: list[Shape] = []
        self.prepared: list[Waiting] = []
        self.alive = 0
        self.dismissed = 0
        self.now = 0.0
        self.idle_processors = 0.0

    def resting(self, shape: Shape | None = None) -> list[bool]:
        """Return which of those that wait, oldest first, stand still."""
        return [one.rests for one in self.prepared if shape in {None, one.shape}]

    def prepare(self, shape: Shape) -> Prepared:
        self.made.append(shape)
        return Waiting(shape, self)

    @asynccontextmanager
    async def pool(self, *, sandboxes: int = 1, slots: int = 8) -> AsyncIterator[Pool]:
        async with anyio.create_task_group() as tasks:
            pool = Pool(
                cold=self.cold,
                prepare=self.prepare,
                runsc=self.runsc,
                budget=Budget(sandboxes=sandboxes, slots=slots),
                gate=self.gate,
                tasks=tasks,
                clock=lambda: self.now,
                idle_processors=lambda: self.idle_processors,
            )
            tasks.start_soon(pool.tend)
            yield pool
            tasks.cancel_scope.cancel()


@pytest.fixture
def host(runsc: Runsc) -> Host:
    return Host(runsc)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(pool_module, "_SOON_S", 0.01)


async def until(seen: Callable[[], bool]) -> None:
    with anyio.fail_after(SOON_S):
        while not seen():
            await anyio.sleep(0.001)


async def run(pool: Pool, limits: EffectiveLimits = LIMITS) -> str:
    return (await pool.run(JOB, limits, ROOTFS, Stop())).start


async def test_the_first_job_of_a_shape_starts_cold_and_the_next_one_warm(host: Host) -> None:
    async with host.pool() as pool:
        assert await run(pool) == "cold"
        await until(lambda: pool.waiting == 1)
        assert await run(pool) == "warm"


async def test_each_is_used_once_and_gone_afterwards(host: Host) -> None:
    async with host.pool() as pool:
        await run(pool)
        for _ in range(3):
            await until(lambda: pool.waiting == 1)
            assert await run(pool) == "warm"
        await until(lambda: pool.waiting == 1)
        assert host.alive == 1
    assert len(host.made) == 4
    assert host.alive == 0


async def test_a_shape_is_only_for_jobs_that_would_see_the_same(host: Host) -> None:
    async with host.pool() as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        assert await run(pool, OTHER) == "cold"


async def test_while_jobs_take_all_processors_none_is_made(host: Host) -> None:
    host.cold.may_end = anyio.Event()
    async with host.pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(run, pool)
        await anyio.sleep(0.05)
        assert host.made == []
        host.idle_processors = 1.0
        await until(lambda: pool.waiting == 1)
        host.cold.may_end.set()


async def test_while_all_slots_are_taken_none_is_made(host: Host) -> None:
    host.cold.may_end = anyio.Event()
    host.idle_processors = 8.0
    async with host.pool(slots=1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(run, pool)
        await anyio.sleep(0.05)
        assert host.made == []
        host.cold.may_end.set()


async def test_one_that_died_while_it_waited_costs_its_job_nothing_but_time(host: Host) -> None:
    host.warm.gone = True
    async with host.pool() as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        assert await run(pool) == "cold"


async def test_one_that_waited_too_long_is_replaced(host: Host) -> None:
    async with host.pool() as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        host.now += 290
        await run(pool)
        await until(lambda: pool.waiting == 1 and len(host.made) == 2)
        for _ in range(4):
            # As long as jobs come that find none, it stays wanted.
            host.now += 290
            await run(pool, OTHER)
        await until(lambda: host.dismissed >= 1)


async def test_without_jobs_all_are_given_back(host: Host) -> None:
    async with host.pool(sandboxes=3) as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        host.now += 301
        await until(lambda: host.alive == 0)
        assert pool.waiting == 0


async def test_once_runsc_was_replaced_none_is_kept_ready(host: Host) -> None:
    host.runsc.pin()
    async with host.pool() as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        host.runsc.binary = Path("/bin/sh")

        await until(lambda: host.alive == 0)
        assert await run(pool) == "cold"
    assert len(host.made) == 1


@pytest.mark.parametrize("shortage", ["memory", "memory_pressure"])
async def test_while_memory_is_short_none_waits_and_then_not_at_once_again(
    host: Host, shortage: Shortage
) -> None:
    async with host.pool() as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        host.gate.set(frozenset({shortage}))
        await until(lambda: host.alive == 0)
        assert await run(pool) == "cold"

        host.gate.set(frozenset())
        host.now += 59
        await anyio.sleep(0.05)
        assert len(host.made) == 1
        host.now += 2
        await until(lambda: pool.waiting == 1)


@pytest.mark.parametrize("shortage", ["disk", "inodes", "open_files", "cpu_pressure"])
async def test_while_something_else_is_short_those_that_wait_stay_and_none_is_made(
    host: Host, shortage: Shortage
) -> None:
    async with host.pool(sandboxes=2) as pool:
        await run(pool)
        await until(lambda: pool.waiting == 1)
        host.gate.set(frozenset({shortage}))
        assert await run(pool) == "warm"
        assert await run(pool, OTHER) == "cold"
        await anyio.sleep(0.05)
        assert len(host.made) == 1

        host.gate.set(frozenset())
        await until(lambda: pool.waiting == 2)


async def test_a_shape_that_cannot_be_made_ready_is_left_alone_for_a_while_and_others_are_not(
    host: Host,
) -> None:
    host.impossible.add(Shape.of(OTHER))
    async with host.pool(sandboxes=2) as pool:
        await run(pool, OTHER)
        await run(pool)
        await until(lambda: pool.waiting == 1)
        await anyio.sleep(0.05)
        assert host.made.count(Shape.of(OTHER)) == 1
        host.now += 61
        await until(lambda: host.made.count(Shape.of(OTHER)) == 2)


# Who is awake


@asynccontextmanager
async def full(host: Host, sandboxes: int) -> AsyncIterator[Pool]:
    """A pool in which so many of one shape wait."""
    async with host.pool(sandboxes=sandboxes) as pool:
        for _ in range(sandboxes):
            await run(pool, LIMITS)
        await until(lambda: pool.waiting == sandboxes)
        yield pool


async def test_the_only_one_that_waits_is_awake(host: Host) -> None:
    async with full(host, 1):
        await anyio.sleep(0.05)
        assert host.resting() == [False]


async def test_of_those_that_wait_only_the_next_to_be_taken_is_awake(host: Host) -> None:
    async with full(host, 3):
        await until(lambda: host.resting() == [False, True, True])


async def test_of_each_shape_one_is_awake(host: Host) -> None:
    async with host.pool(sandboxes=4) as pool:
        for limits in (LIMITS, OTHER, LIMITS, OTHER):
            await run(pool, limits)
        await until(lambda: pool.waiting == 4)
        shapes = (Shape.of(LIMITS), Shape.of(OTHER))
        await until(lambda: [host.resting(shape) for shape in shapes] == [[False, True]] * 2)


async def test_when_one_was_used_the_next_one_is_awake(host: Host) -> None:
    async with full(host, 3) as pool:
        await until(lambda: host.resting() == [False, True, True])
        _, second, third = host.prepared
        await run(pool)
        await until(lambda: not second.rests)
        assert third.rests


async def test_when_the_one_that_was_awake_has_died_the_next_one_is(host: Host) -> None:
    async with full(host, 2):
        await until(lambda: host.resting() == [False, True])
        first, second = host.prepared
        first.die()
        await until(lambda: not second.rests)


async def test_all_that_jobs_have_taken_are_awake_however_many_come_at_once(host: Host) -> None:
    async with full(host, 3) as pool, anyio.create_task_group() as tasks:
        await until(lambda: host.resting() == [False, True, True])
        host.warm.may_end = anyio.Event()
        for _ in range(3):
            tasks.start_soon(run, pool)
        await until(lambda: pool.waiting == 0)
        await anyio.sleep(0.05)
        assert host.resting() == [False] * 3
        host.warm.may_end.set()


async def test_an_open_pool_makes_itself_ready_and_leaves_nothing(host: Host) -> None:
    async with Pool.open(
        cold=host.cold,
        prepare=host.prepare,
        runsc=host.runsc,
        budget=Budget(sandboxes=2, slots=1),
        gate=host.gate,
        expected=LIMITS,
    ) as pool:
        await until(lambda: pool.waiting == 1)
        assert await run(pool) == "warm"
    assert host.alive == 0
