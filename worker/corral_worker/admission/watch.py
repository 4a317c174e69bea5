"""Keeps the gate closed as long as the host is short of something."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog

from corral_worker.admission.decision import HostSample, Shortage, shortages
from corral_worker.admission.gate import Gate
from corral_worker.marks import Marks
from corral_worker.process.thread import in_thread

_LOOK_S = 1.0
_BYTES: frozenset[Shortage] = frozenset({"memory", "disk"})


class AdmissionWatch:
    """Looks at the host again and again, and tells when that changes something.

    Args:
        gate: what is closed and opened.
        marks: what the host must have left.
        sample: looks at the host; blocks for about a millisecond.
        announce: told what the host is short of, whenever that changes.
    """

    def __init__(
        self,
        gate: Gate,
        marks: Marks,
        *,
        sample: Callable[[], HostSample],
        announce: Callable[[frozenset[Shortage]], None],
    ) -> None:
        self._gate = gate
        self._marks = marks
        self._sample = sample
        self._announce = announce
        self._suspected = anyio.Event()
        self._log = structlog.get_logger()

    def suspect(self) -> None:
        """Have the host looked at at once, for a job has just failed on it."""
        self._suspected.set()

    async def look(self) -> None:
        """Look once."""
        sample = await in_thread(self._sample)
        before = self._gate.short_of
        now = shortages(sample, self._marks, before)
        if now == before:
            return
        self._gate.set(now)
        if now:
            self._log.warning("worker.unready", short_of=sorted(now), **_seen(sample, now))
        else:
            self._log.info("worker.ready_again", was_short_of=sorted(before))
        self._announce(now)

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            await self.look()
            with anyio.move_on_after(_LOOK_S):
                await self._suspected.wait()
                self._suspected = anyio.Event()


def _seen(sample: HostSample, short_of: frozenset[Shortage]) -> dict[str, float | str]:
    """Return the figures that were found short, for the log."""
    seen: dict[str, float | str] = {}
    for name in sorted(short_of):
        if name == "runsc":
            seen["remedy"] = "runsc is gone, or was replaced: start the worker again"
        elif name == "sandboxes":
            seen["remedy"] = "none can be started on this host: corral doctor looks for the reason"
        else:
            field = f"{name}_bytes" if name in _BYTES else name
            seen[field] = getattr(sample, field)
    return seen
