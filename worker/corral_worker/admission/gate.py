"""What jobs pass before they are taken."""

from __future__ import annotations

import anyio

from corral_worker.admission.decision import Shortage


class Gate:
    """Open as long as the host is short of nothing."""

    def __init__(self) -> None:
        self._short_of: frozenset[Shortage] = frozenset()
        self._changed = anyio.Event()

    @property
    def short_of(self) -> frozenset[Shortage]:
        """What keeps it closed."""
        return self._short_of

    def set(self, short_of: frozenset[Shortage]) -> None:
        """Close it for a shortage, or open it for none. Jobs that have passed are not disturbed."""
        if short_of != self._short_of:
            self._short_of = short_of
            changed, self._changed = self._changed, anyio.Event()
            changed.set()

    async def opened(self) -> None:
        """Wait until it is open."""
        while self._short_of:
            await self._changed.wait()
