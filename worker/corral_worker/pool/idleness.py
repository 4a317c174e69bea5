"""How much of the host's processors nobody uses."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IDLE_FIELDS = slice(4, 6)
"""Of the first line of ``/proc/stat``: idle, and waiting for disks."""
_LEAST_S = 0.1
"""The kernel counts in hundredths of a second: less than this says little."""
_MOST_S = 0.5
"""What was idle longer ago says nothing of those who have just begun to want a processor."""


class Idleness:
    """Watches the host's idle processor time, from one look to the next.

    Args:
        stat: the kernel's counters, see proc_stat(5).
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._since = time.monotonic()
        self._ticks = self._read()
        self._processors = 0.0

    def processors(self) -> float:
        """Return how many processors were idle since the last look; none before there was one.

        None either if that was too long ago, or if it cannot be told at the moment, for want of
        a file descriptor.
        """
        now = time.monotonic()
        elapsed_s = now - self._since
        if elapsed_s >= _LEAST_S:
            try:
                ticks = self._read()
            except OSError:
                return 0.0
            idle = (ticks - self._ticks) / self._ticks_per_s / elapsed_s
            self._processors = idle if elapsed_s <= _MOST_S else 0.0
            self._since, self._ticks = now, ticks
        return self._processors

    def _read(self) -> int:
        with self._stat.open() as file:
            return sum(map(int, file.readline().split()[_IDLE_FIELDS]))
