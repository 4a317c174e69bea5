"""How many sandboxes to keep ready, and of which shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from corral_worker.pool.prepared import Shape

REMEMBERED_S = 300.0
"""Seconds after which a job that came is forgotten."""
BURST_S = 5.0
"""A shape gets what came in the busiest so many seconds: many times what making one takes."""

_MOST_REMEMBERED = 1024


class Demand:
    """Remembers which shapes were asked for of late, and when. Monotonic seconds."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, Shape, int]] = deque(maxlen=_MOST_REMEMBERED)
        self._recent: dict[Shape, deque[float]] = {}

    def note(self, shape: Shape, now: float) -> None:
        """Note that a job asked for a shape; times never go back."""
        recent = self._recent.setdefault(shape, deque(maxlen=_MOST_REMEMBERED))
        recent.append(now)
        while recent[0] <= now - BURST_S:
            recent.popleft()
        self._arrivals.append((now, shape, len(recent)))

    def bursts(self, now: float) -> dict[Shape, int]:
        """Return how many jobs of each remembered shape came in its busiest few seconds."""
        while self._arrivals and self._arrivals[0][0] <= now - REMEMBERED_S:
            self._arrivals.popleft()
        # Jobs choose the shapes: what is over is not kept.
        for shape in [one for one, times in self._recent.items() if times[-1] <= now - BURST_S]:
            del self._recent[shape]
        most: dict[Shape, int] = {}
        for _, shape, burst in self._arrivals:
            if burst > most.get(shape, 0):
                most[shape] = burst
        return most


def wanted(bursts: Mapping[Shape, int], most: int) -> dict[Shape, int]:
    """Return how many sandboxes of each shape to keep: never more than ``most`` together.

    Each shape gets one before any gets a second, that of the largest burst first; none gets
    more than came in its burst.
    """
    by_burst = sorted(
        (shape for shape, burst in bursts.items() if burst > 0),
        key=lambda shape: (-bursts[shape], shape.memory_bytes, shape.cpus),
    )
    given = dict.fromkeys(by_burst[: max(most, 0)], 1)
    left = most - len(given)
    for shape in given:
        more = min(bursts[shape] - 1, left)
        given[shape] += more
        left -= more
    return given


def next_ones(waiting: Sequence[Shape]) -> frozenset[int]:
    """Return the places, in the order they are taken in, of those that are next of their shape.

    They stay awake for their job: docs/adr/0013-those-that-wait-stand-still-but-for-the-next.md.
    """
    return frozenset(map(waiting.index, waiting))
