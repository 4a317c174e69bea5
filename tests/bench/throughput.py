"""Jobs a second with more to do than can be done, what each costs, and what that is bound by.

Whoever has its turn is alone: its worker is started for it, has had some jobs and, if it keeps
sandboxes ready, has them all before the clock starts; and it has ended before the next begins. A
sandbox that waits takes some 5 % of a processor, so that the workers of the other turns would take
part of this one's, and not the same of all.

All sandboxes but those of the bindings are in cgroups below one parent, which has the kernel's own
weight, and there the jobs of all ways weigh the same, corral's 16 shares. That takes nothing from
whoever is alone on the host: in 15 pairs of turns of bare ``runsc run`` on a quiet machine the
median ratio of 16 shares to 1024 was 1.0. It matters on a busy one, where other work left those
with 16 shares 0.5 to 0.9 of what those with 1024 had. (The bindings ask for no cgroup: theirs are
at the top, with 1024 shares.) Where ``<way>_host_cpu_ms_per_job`` is far above what its parts cost
the machine was busy with something else.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from statistics import median

import anyio
import msgspec
from bench.bare import PROGRAMS, Bare
from bench.bindings import Bindings
from bench.figures import Figures
from bench.ground import Ground
from bench.processors import Processors
from bench.served import Plan, serving
from bench.stock import stock_worker

_RAMP_S = 1.0
"""The beginning of each turn, which does not count: until the first jobs have ended. Those of a way
that starts cold end together, after half a second and more, which would count as a gain; where
sandboxes wait some end at once."""
_WAITING = 2
"""Jobs that callers have under way, for each that can run: so that none of the places is free."""
_STOCK_WAITING = 4
_POOL, _COLD, _STOCK, _BINDINGS = "pool", "cold", "arq", "gvisor"
_WARM = 4
_BINDINGS_MORE_S = 2.0
"""Seconds by which their turns are longer: so much takes one run."""


class Entrant(msgspec.Struct, frozen=True, kw_only=True):
    """One who is ready for a turn."""

    run: Callable[[int], Awaitable[bool]]
    """Runs a job in a lane, and returns whether it counts."""
    lanes: int
    spent_ms: Callable[[], dict[str, float]]
    """Processor time until now, by the figure that says how much of it a job took."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn showed."""

    jobs_per_s: float
    busy: float
    """Processors in use while it was measured, by all on the host."""
    stolen: float
    costs_ms: dict[str, float]


class Throughput:
    """Gives every way short turns, at each of some concurrencies; its best one counts."""

    def __init__(self, ground: Ground, bares: dict[str, Bare], bindings: Bindings) -> None:
        self._ground = ground
        self._bares = bares
        self._bindings = bindings
        self._turns: dict[str, dict[int, list[Turn]]] = {}
        self._not_filled = 0

    async def measure(self, *, concurrencies: Sequence[int], turns: int, turn_s: float) -> None:
        """Take the turns; what was seen of them is in :meth:`figures`, also if this raises."""
        ways = ["bare_dir", _COLD, "bare_erofs", _POOL, _STOCK]
        if self._bindings.usable:
            ways.append(_BINDINGS)
        for number in range(turns):
            for slots in concurrencies:
                # In both directions: what one leaves to do strikes not always the same.
                for way in ways if number % 2 else reversed(ways):
                    more_s = _BINDINGS_MORE_S if way == _BINDINGS else 0
                    async with self._entrant(way, slots, f"{way}{slots}-{number}") as entrant:
                        turn = await _turn(entrant, turn_s + more_s)
                    self._turns.setdefault(way, {}).setdefault(slots, []).append(turn)

    def figures(self) -> Figures:
        """Return ``<way>_jobs_per_s``, the concurrency it is of, and what was used for it."""
        return dict(self._figures())

    def _entrant(self, way: str, slots: int, name: str) -> AbstractAsyncContextManager[Entrant]:
        if way in self._bares:
            return self._bare(way, slots)
        if way == _STOCK:
            return self._stock(slots, name)
        return self._bound(slots) if way == _BINDINGS else self._corral(way, slots, name)

    @asynccontextmanager
    async def _bare(self, way: str, slots: int) -> AsyncIterator[Entrant]:
        async def run(lane: int) -> bool:
            await self._bares[way].run("true", lane)
            return True

        def spent_ms() -> dict[str, float]:
            # runsc waits for its sandbox and we wait for runsc: nothing else that we wait for ends
            # in its turn. A cgroup's account would lack runsc itself.
            ours = resource.getrusage(resource.RUSAGE_CHILDREN)
            return {f"{way}_cpu_ms_per_job": 1000 * (ours.ru_utime + ours.ru_stime)}

        yield Entrant(run=run, lanes=slots, spent_ms=spent_ms)

    @asynccontextmanager
    async def _corral(self, way: str, slots: int, name: str) -> AsyncIterator[Entrant]:
        plan = Plan(slots=slots, warm=_WARM if way == _POOL else 0)
        # A pool is what an operator gets who sets nothing.
        of = "" if way == _POOL else f"_{way}"
        async with serving(self._ground, {name: plan}) as served:
            worker = served[name]

            async def run(_: int) -> bool:
                await worker.run(PROGRAMS["true"])
                return True

            def spent_ms() -> dict[str, float]:
                spent = msgspec.structs.asdict(worker.spent())
                return {f"{who}_cpu_ms_per_job{of}": 1000 * s for who, s in spent.items()}

            await worker.exercise(PROGRAMS["true"])
            self._not_filled += not await worker.filled()
            yield Entrant(run=run, lanes=_WAITING * slots, spent_ms=spent_ms)

    @asynccontextmanager
    async def _stock(self, slots: int, name: str) -> AsyncIterator[Entrant]:
        async with stock_worker(self._ground, self._bares["bare_dir"], slots, name) as stock:

            async def run(_: int) -> bool:
                await stock.run_watched("true")
                return True

            def spent_ms() -> dict[str, float]:
                spent = msgspec.structs.asdict(stock.spent())
                return {f"{who}_cpu_ms_per_job_{_STOCK}": 1000 * s for who, s in spent.items()}

            async with anyio.create_task_group() as tasks:
                for lane in range(slots):
                    tasks.start_soon(run, lane)
            yield Entrant(run=run, lanes=_STOCK_WAITING * slots, spent_ms=spent_ms)

    @asynccontextmanager
    async def _bound(self, slots: int) -> AsyncIterator[Entrant]:
        async def run(lane: int) -> bool:
            seen_s, _ = await self._bindings.run("true", lane)
            return not math.isnan(seen_s)

        # Their sandboxes are nobody's children: what they cost is in the processors in use.
        yield Entrant(run=run, lanes=slots, spent_ms=dict)

    def _figures(self) -> Iterator[tuple[str, float | str | None]]:
        for way, by_slots in self._turns.items():
            rates = {
                slots: median(turn.jobs_per_s for turn in turns)
                for slots, turns in by_slots.items()
            }
            best = max(rates, key=lambda slots: rates[slots])
            turns = by_slots[best]
            busy = median(turn.busy for turn in turns)
            yield f"{way}_jobs_per_s", round(rates[best], 2)
            yield f"{way}_best_concurrency", best
            yield f"{way}_busy_processors", round(busy, 2)
            yield f"{way}_stolen_processors", round(median(turn.stolen for turn in turns), 2)
            if rates[best]:
                yield f"{way}_host_cpu_ms_per_job", round(1000 * busy / rates[best], 1)
            for figure in turns[0].costs_ms:
                yield figure, round(median(turn.costs_ms[figure] for turn in turns), 2)
        yield "pool_not_filled", self._not_filled
        yield from self._bindings.missing("gvisor_jobs_per_s")


def rate(ended: Sequence[float], begins: float, ends: float) -> float:
    """Return how many a second ended within a time, to less than one more or less.

    That is from the last one before it to the last one in it.
    """
    counted = [at for at in ended if begins <= at < ends]
    before = [at for at in ended if at < begins]
    if not counted or not before:
        return len(counted) / (ends - begins)
    return len(counted) / (max(counted) - max(before))


async def _turn(entrant: Entrant, turn_s: float) -> Turn:
    """Have runs one after the other in each lane, and look at those that end after the ramp."""
    ended: list[float] = []
    used: list[Processors] = []
    spent_before = entrant.spent_ms()
    began = time.monotonic()

    async def lane(number: int) -> None:
        while time.monotonic() < began + _RAMP_S + turn_s:
            if await entrant.run(number):
                ended.append(time.monotonic())

    async def watch() -> None:
        await anyio.sleep(_RAMP_S)
        before = Processors.now()
        await anyio.sleep(turn_s)
        used.append(Processors.now().since(before))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        for number in range(entrant.lanes):
            tasks.start_soon(lane, number)
    spent = entrant.spent_ms()
    (use,) = used
    begins = began + _RAMP_S
    return Turn(
        jobs_per_s=rate(ended, begins, begins + turn_s),
        busy=use.busy_s / use.at_s,
        stolen=use.stolen_s / use.at_s,
        # All that was run costs, whether the clock was running or not.
        costs_ms={
            figure: (spent[figure] - before) / max(len(ended), 1)
            for figure, before in spent_before.items()
        },
    )
