"""The host's processors: how much of them is in use, by whomever, and what a process has spent."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Processors(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of all processors together, since some moment."""

    at_s: float
    busy_s: float
    """Not idle, and not waiting for a disk: programs, the kernel, interrupts."""
    stolen_s: float
    """Wanted here, and given to others by the hypervisor; not in ``busy_s``."""

    @classmethod
    def now(cls) -> Processors:
        """Return what the kernel has counted since the host's start, in steps of 10 ms."""
        line, _, _ = Path("/proc/stat").read_text().partition("\n")
        # proc(5). The fields after these are of this host's own guests, and in user and nice too.
        user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
        return cls(
            at_s=time.monotonic(),
            busy_s=(user + nice + system + irq + softirq) / _TICKS_PER_S,
            stolen_s=steal / _TICKS_PER_S,
        )

    def since(self, before: Processors) -> Processors:
        """Return the difference."""
        return Processors(
            at_s=self.at_s - before.at_s,
            busy_s=self.busy_s - before.busy_s,
            stolen_s=self.stolen_s - before.stolen_s,
        )

    def stolen_percent(self) -> float:
        """Return the stolen share of all the time that the processors had."""
        return 100 * self.stolen_s / (self.at_s * (os.cpu_count() or 1))


def spent_by(pid: int) -> tuple[float, float]:
    """Return a process's own seconds of processor time, and those of children it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    user, system, child_user, child_system = map(int, fields[11:15])
    return (user + system) / _TICKS_PER_S, (child_user + child_system) / _TICKS_PER_S
