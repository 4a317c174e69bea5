"""Jobs a second with more to do than can be done, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median

import anyio
from bench.bare import PROGRAMS, Bare
from bench.bindings import Bindings
from bench.figures import Figures
from bench.ground import Ground
from bench.served import Plan, Served, serving
from bench.stock import stock_worker

_RAMP_S = 0.5
"""The beginning of each block, which does not count: until all are at it."""
_WAITING = 2
"""Jobs that callers have under way, for each that can run: so that none of the places is free."""
_STOCK_WAITING = 4
_POOL, _COLD = "pool", "cold"

Way = Callable[[int], Awaitable[object]]


class Throughput:
    """Gives every way short turns, at each of some concurrencies; its best one counts."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._rates: dict[str, dict[int, list[float]]] = {}
        self._costs: dict[str, dict[int, list[tuple[float, float, float]]]] = {}

    async def measure(
        self,
        ground: Ground,
        bares: dict[str, Bare],
        *,
        concurrencies: Sequence[int],
        turns: int,
        turn_s: float,
    ) -> Figures:
        """Return ``<way>_jobs_per_s``, the concurrencies they are of, and the costs of a job."""
        plans = {
            f"{way}{slots}": Plan(slots=slots, warm=4 if way == _POOL else 0)
            for slots in concurrencies
            for way in (_COLD, _POOL)
        }
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(serving(ground, plans))
            stocks = {
                slots: await stack.enter_async_context(
                    stock_worker(ground, bares["bare_dir"], slots)
                )
                for slots in concurrencies
            }
            for turn in range(turns):
                for slots in concurrencies:
                    # In both directions: what one leaves to do strikes not always the same.
                    ways = ["bare_dir", _COLD, "bare_erofs", _POOL]
                    for way in ways if turn % 2 else reversed(ways):
                        if way in bares:
                            run = partial(bares[way].run, "true")
                            self._note(way, slots, await _rate(run, slots, turn_s))
                        else:
                            await self._serve(way, slots, served[f"{way}{slots}"], turn_s)
                    stock = partial(_ignoring_lane, stocks[slots].run_watched)
                    rate = await _rate(stock, _STOCK_WAITING * slots, turn_s)
                    self._note("arq", slots, rate)
                    if self._bindings.usable:
                        bound = partial(self._bindings.run, "true")
                        self._note("gvisor", slots, await _rate(bound, slots, turn_s + 2))
        return dict(self._figures())

    async def _serve(self, way: str, slots: int, served: Served, turn_s: float) -> None:
        jobs = 0

        async def run(_: int) -> None:
            nonlocal jobs
            await served.run(PROGRAMS["true"])
            jobs += 1

        before = served.spent()
        self._note(way, slots, await _rate(run, _WAITING * slots, turn_s))
        spent = served.spent().since(before)
        self._costs.setdefault(way, {}).setdefault(slots, []).append(
            (1000 * spent.worker / jobs, 1000 * spent.redis / jobs, 1000 * spent.runsc / jobs)
        )

    def _note(self, way: str, concurrency: int, rate: float) -> None:
        self._rates.setdefault(way, {}).setdefault(concurrency, []).append(rate)

    def _figures(self) -> Iterator[tuple[str, float | str | None]]:
        for way, rates in self._rates.items():
            best = max(rates, key=lambda concurrency: median(rates[concurrency]))
            yield f"{way}_jobs_per_s", round(median(rates[best]), 2)
            yield f"{way}_best_concurrency", best
            if way in self._costs:
                # A pool is what an operator gets who sets nothing.
                of = "" if way == _POOL else f"_{way}"
                costs = zip(*self._costs[way][best], strict=True)
                for who, values in zip(("worker", "redis", "runsc"), costs, strict=True):
                    yield f"{who}_cpu_ms_per_job{of}", round(median(values), 2)
        yield from self._bindings.missing("gvisor_jobs_per_s")


async def _ignoring_lane(run: Callable[[str], Awaitable[None]], _: int) -> None:
    await run("true")


async def _rate(run: Way, lanes: int, turn_s: float) -> float:
    """Return how many runs a second ended, with one after the other in each lane."""
    began = time.monotonic()
    ended: list[float] = []

    async def lane(number: int) -> None:
        while time.monotonic() < began + _RAMP_S + turn_s:
            await run(number)
            ended.append(time.monotonic())

    async with anyio.create_task_group() as tasks:
        for number in range(lanes):
            tasks.start_soon(lane, number)
    counted = [at for at in ended if 0 <= at - began - _RAMP_S < turn_s]
    return len(counted) / turn_s
