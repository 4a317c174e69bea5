"""Keeps the host clean of what no living worker holds."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from corral_worker.reaper.sweep import Deadline, Survey, Sweep, Sweeper
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings

_SWEEP_WITHIN_S = 10.0
"""Seconds that one sweep may take; what it does not get to is the next one's."""
_ANSWERS_WITHIN_S = 5.0
"""Seconds beyond that until a file system that does not answer is left to itself."""


class Reaper:
    """Removes leftovers: those of dead workers at once, this worker's own on second sight.

    What belongs to living workers, or to nobody knows whom, is not touched.

    Args:
        state_dir: where workers have their directories.
        cgroups: below whose parent they have their cgroups.
        own: what the worker it is part of holds, and its directory; without it
            only others are looked at.
    """

    def __init__(
        self, *, state_dir: Path, cgroups: CgroupHost, own: tuple[Holdings, Path] | None = None
    ) -> None:
        self._holdings = own[0] if own else None
        self._sweeper = Sweeper(
            state_dir=state_dir,
            cgroups=cgroups,
            own=(own[0].worker, own[1]) if own else None,
        )
        self._told: dict[str, str] = {}
        self._in_time = True
        self._log = structlog.get_logger()
        self.removed = Counts()
        """All that was removed so far."""

    async def survey(self) -> Survey:
        """Look, and change nothing.

        Raises:
            TimeoutError: a file system does not answer.
        """
        held = self._held()
        with anyio.fail_after(_SWEEP_WITHIN_S + _ANSWERS_WITHIN_S):
            return await anyio.to_thread.run_sync(
                self._sweeper.survey, held, Deadline(_SWEEP_WITHIN_S), abandon_on_cancel=True
            )

    async def reap(self) -> Sweep:
        """Remove what is left over, count it and log it. Takes some seconds at most.

        Raises nothing. On cancellation what is not done is left for the next time.
        """
        held = self._held()
        deadline = Deadline(_SWEEP_WITHIN_S)
        sweep = Sweep(complete=False)
        try:
            with anyio.move_on_after(_SWEEP_WITHIN_S + _ANSWERS_WITHIN_S):
                sweep = await anyio.to_thread.run_sync(
                    self._sweeper.sweep, held, deadline, abandon_on_cancel=True
                )
        except TimeoutError:
            pass  # the one before it still hangs
        except Exception:  # noqa: BLE001 - see below
            # Whatever it is, the worker's jobs are worth more.
            self._log.exception("reaper.failed")
        finally:
            deadline.end()
        self.removed += sweep.removed
        self._tell(sweep)
        return sweep

    async def run(self, every_s: float) -> None:
        """Reap for ever, each time after ``every_s`` seconds."""
        while True:
            await anyio.sleep(every_s)
            await self.reap()

    def _held(self) -> frozenset[str]:
        # Before anything is looked at: what is made meanwhile is seen, and not known, only once.
        return self._holdings.now() if self._holdings else frozenset()

    def _tell(self, sweep: Sweep) -> None:
        if sweep.dead.total:
            found = {
                kind: count for kind, count in msgspec.structs.asdict(sweep.dead).items() if count
            }
            self._log.warning("reaper.cleaned_up", **found)
        for stray in sweep.strays:
            self._log.error("reaper.stray", kind=stray.kind, name=stray.name, sandbox=stray.sandbox)
        if self._in_time and not sweep.complete:
            self._log.warning("reaper.out_of_time", within_s=_SWEEP_WITHIN_S)
        self._in_time = sweep.complete
        for doubt in sweep.left:
            if self._told.get(doubt.name) != doubt.reason:
                self._log.warning("reaper.left_alone", name=doubt.name, reason=doubt.reason)
        # One that was out of time has not seen all of what is left.
        seen_before = {} if sweep.complete else self._told
        self._told = seen_before | {doubt.name: doubt.reason for doubt in sweep.left}
