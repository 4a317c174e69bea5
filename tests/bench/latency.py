"""From the submit until the result is seen, with nothing else to do: one job after the other.

Without a pool nothing on the host waits in a sandbox, so bare runsc, the stock worker and corral's
cold start are measured on a host where none does: four of them beside it made bare ``runsc run`` 6
to 10 % slower, which would have flattered the warm start. The warm start is measured with its pool,
full again each time, for that is how it is had. So both kinds take turns by the block: to start a
worker and fill its pool takes seconds, too many for each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
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

from corral import Result

_SETTLE_S = 0.4
"""A sandbox that waits has been idle for longer than this; it says so in its job's result."""
_BLOCK = 5
"""Rounds of each kind, until it is the other's turn."""
_PROGRAMS = ("true", "python")
_STEPS = ("queued", "sandbox", "run", "teardown", "rest")

Way = Callable[[str], Awaitable[float | None]]


class Latency:
    """Takes every way in turn, so that whatever else the machine does strikes all alike."""

    def __init__(self, ground: Ground, bares: dict[str, Bare], bindings: Bindings) -> None:
        self._ground = ground
        self._bares = bares
        self._bindings = bindings
        self._times: dict[str, list[float]] = {}
        self._cold_instead = 0

    async def measure(self, *, rounds: int) -> None:
        """Take each way so often; its times are in :meth:`figures`, also if this raises."""
        async with AsyncExitStack() as stack:
            stock = await stack.enter_async_context(
                stock_worker(self._ground, self._bares["bare_dir"], 10, "arq")
            )
            plans = {"cold": Plan(slots=4, warm=0)}
            served = await stack.enter_async_context(serving(self._ground, plans))
            ways: dict[str, Way] = {
                "bare_run": self._bares["bare_dir"].run,
                "bare_erofs": self._bares["bare_erofs"].run,
                "cold": partial(self._cold, served["cold"]),
                "arq": stock.run,
            }
            if self._bindings.usable:
                ways["gvisor"] = self._gvisor
            # This round reads the images from disk.
            await self._rounds(ways, 1)
            self._times.clear()
            for first in range(0, rounds, _BLOCK):
                block = min(_BLOCK, rounds - first)
                await self._rounds(ways, block)
                await self._warm_rounds(f"warm-{first}", block)

    def figures(self) -> Figures:
        """Return the medians in milliseconds, by ``<way>_<program>_p50_ms``."""
        return dict(self._figures())

    async def _rounds(self, ways: Mapping[str, Way], count: int) -> None:
        for _ in range(count):
            for program in _PROGRAMS:
                for way, run in ways.items():
                    took_s = await run(program)
                    if took_s is not None:
                        self._note(f"{way}_{program}_p50", took_s)

    async def _warm_rounds(self, name: str, count: int) -> None:
        async with serving(self._ground, {name: Plan(slots=4, warm=4)}) as served:
            worker = served[name]
            await worker.exercise(PROGRAMS["true"])
            for program in _PROGRAMS:
                # A worker's first of a kind is not what its later ones are.
                await worker.filled()
                await worker.run(PROGRAMS[program])
            await self._rounds({"warm": partial(self._warm, worker)}, count)

    async def _warm(self, served: Served, program: str) -> float | None:
        await served.filled()
        await anyio.sleep(_SETTLE_S)
        began = time.monotonic()
        result = await served.run(PROGRAMS[program])
        took_s = time.monotonic() - began
        if result.provenance is None or result.provenance.start != "warm":
            self._cold_instead += 1
            return None
        self._note_steps(f"warm_{program}", result, took_s)
        return took_s

    async def _cold(self, served: Served, program: str) -> float:
        began = time.monotonic()
        result = await served.run(PROGRAMS[program])
        took_s = time.monotonic() - began
        self._note_steps(f"cold_{program}", result, took_s)
        return took_s

    async def _gvisor(self, program: str) -> float | None:
        seen_s, cycle_s = await self._bindings.run(program)
        if math.isnan(seen_s):
            return None
        self._note(f"gvisor_{program}_cycle_p50", cycle_s)
        return seen_s

    def _note_steps(self, name: str, result: Result, took_s: float) -> None:
        phases = result.phases
        steps = (phases.queued_s, phases.sandbox_s, phases.run_s, phases.teardown_s)
        for step, seconds in zip(_STEPS, (*steps, took_s - sum(steps)), strict=True):
            self._note(f"{name}_{step}", seconds)

    def _note(self, figure: str, seconds: float) -> None:
        self._times.setdefault(f"{figure}_ms", []).append(1000 * seconds)

    def _figures(self) -> Iterator[tuple[str, float | str | None]]:
        yield from ((name, round(median(times), 1)) for name, times in self._times.items())
        yield "latency_rounds", len(self._times.get("warm_true_p50_ms", ()))
        yield "warm_not_ready", self._cold_instead
        yield from self._bindings.missing("gvisor_true_p50_ms", "gvisor_python_p50_ms")
