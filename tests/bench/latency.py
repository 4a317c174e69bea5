"""From the submit until the result is seen, with nothing else to do: one job after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
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
_WARM_WITHIN_S = 10.0
_STEPS = ("queued", "sandbox", "run", "teardown", "rest")

Way = Callable[[str], Awaitable[float | None]]


class Latency:
    """Takes every way in turn, so that whatever else the machine does strikes all alike."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._times: dict[str, list[float]] = {}
        self._cold_instead = 0

    async def measure(
        self, ground: Ground, bares: dict[str, Bare], *, rounds: int, at_most_s: float
    ) -> Figures:
        """Return the medians in milliseconds, by ``<way>_<program>_p50_ms``.

        Args:
            ground: where all happens.
            bares: bare runsc, by the name of its figures.
            rounds: how often each way is taken.
            at_most_s: seconds after which no other round is begun, but for the second.
        """
        plans = {"warm": Plan(slots=4, warm=4), "cold": Plan(slots=4, warm=0)}
        async with AsyncExitStack() as stack:
            stock = await stack.enter_async_context(stock_worker(ground, bares["bare_dir"], 10))
            served = await stack.enter_async_context(serving(ground, plans))
            ways: dict[str, Way] = {
                "bare_run": bares["bare_dir"].run,
                "warm": lambda program: self._warm(served["warm"], program),
                "bare_erofs": bares["bare_erofs"].run,
                "cold": lambda program: self._cold(served["cold"], program),
                "arq": stock.run,
            }
            if self._bindings.usable:
                ways["gvisor"] = self._gvisor
            until = time.monotonic() + at_most_s
            for number in range(rounds + 1):
                if number > 2 and time.monotonic() > until:
                    break
                for program in ("true", "python"):
                    for way, run in ways.items():
                        took_s = await run(program)
                        if took_s is not None:
                            self._note(f"{way}_{program}_p50", took_s)
                if not number:
                    # This round has read the images from disk.
                    self._times.clear()
        return dict(self._figures())

    async def _warm(self, served: Served, program: str) -> float | None:
        with anyio.move_on_after(_WARM_WITHIN_S):
            while not served.sandboxes():
                await anyio.sleep(0.02)
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
        yield "latency_rounds", len(self._times["bare_run_true_p50_ms"])
        yield "warm_not_ready", self._cold_instead
        yield from self._bindings.missing("gvisor_true_p50_ms", "gvisor_python_p50_ms")
