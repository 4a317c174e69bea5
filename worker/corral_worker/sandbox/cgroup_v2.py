"""Sandbox cgroups on a host with the unified version 2 hierarchy."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from corral import HostLimits
from corral_worker.sandbox.cgroup import (
    Counters,
    check_held,
    check_no_swap,
    is_there,
    make,
    pids_below,
    read,
    read_field,
    read_number,
    remove_below,
    write,
)
from corral_worker.sandbox.cgroup_processes import signal_all

NEEDED = ("cpu", "memory", "pids")
"""Controllers without which limits would not hold."""

_CHILD = "sandbox"
_PERIOD_US = 100_000
# The same for all: only among sandboxes does it count. With the kernel's own 100 one that
# computes keeps all else on the host waiting for seconds: docs/adr/0012-sandboxes-weigh-little.md.
_WEIGHT = "2"
_WAITING_WEIGHT = "1"


class CgroupV2:
    """One directory in the unified hierarchy, and runsc's own below it.

    Version 2 counters are hierarchical: they stay when runsc removes its own.

    Args:
        mount: where the hierarchy is mounted.
        path: the cgroup's path in it, beginning with a slash.
    """

    def __init__(self, mount: Path, path: str) -> None:
        self._path = path
        self._directory = mount / path.lstrip("/")

    @property
    def runsc_path(self) -> str:
        return f"{self._path}/{_CHILD}"

    def create(self, limits: HostLimits) -> HostLimits:
        make(self._directory)
        # runsc's own cgroup below can hold the limits only if it may have the controllers.
        write(f"{self._directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in NEEDED))
        write(f"{self._directory}/cpu.weight", _WEIGHT)
        return self.limit(limits)

    def limit(self, limits: HostLimits) -> HostLimits:
        directory = self._directory
        write(f"{directory}/memory.max", str(limits.memory_bytes))
        swap = f"{directory}/memory.swap.max"
        if is_there(swap):
            write(swap, "0")
        else:
            check_no_swap()
        group = f"{directory}/memory.oom.group"
        if is_there(group):
            # A sandbox that lost one process to the kernel is no use to anyone.
            write(group, "1")
        write(f"{directory}/pids.max", str(limits.tasks))
        quota = "max" if math.isinf(limits.cpus) else str(int(limits.cpus * _PERIOD_US))
        write(f"{directory}/cpu.max", f"{quota} {_PERIOD_US}")
        return check_held(
            limits,
            HostLimits(
                memory_bytes=read_number(f"{directory}/memory.max"),
                swap_bytes=read_number(swap) if is_there(swap) else None,
                cpus=_cpus(read(f"{directory}/cpu.max")),
                tasks=read_number(f"{directory}/pids.max"),
            ),
        )

    def counters(self) -> Counters:
        directory = self._directory
        peak = f"{directory}/pids.peak"
        return Counters(
            cpu_s=read_field(f"{directory}/cpu.stat", "usage_usec") / 1e6,
            # memory.peak is there from Linux 5.19 on.
            peak_memory_bytes=read_number(f"{directory}/memory.peak"),
            peak_tasks=read_number(peak) if is_there(peak) else None,
            oom_kills=read_field(f"{directory}/memory.events", "oom_kill"),
            memory_bytes=read_number(f"{directory}/memory.current"),
        )

    def yield_processor(self) -> None:
        idle = f"{self._directory}/cpu.idle"
        if is_there(idle):
            # From Linux 5.15 on: it weighs a seventh of what a job does.
            write(idle, "1")
        else:
            write(f"{self._directory}/cpu.weight", _WAITING_WEIGHT)

    def begin(self) -> None:
        idle = f"{self._directory}/cpu.idle"
        if is_there(idle):
            write(idle, "0")
        write(f"{self._directory}/cpu.weight", _WEIGHT)

    def processes(self) -> set[int]:
        return pids_below(self._directory)

    def kill(self) -> None:
        try:
            (self._directory / "cgroup.kill").write_text("1")
        except OSError:
            # Before Linux 5.14 there is no such file; afterwards there may be no such cgroup.
            signal_all(self.processes())
        # At its limit the scheduler would let it die only bit by bit.
        for directory in (self._directory, self._directory / _CHILD):
            with suppress(OSError):
                (directory / "cpu.max").write_text("max")

    def remove(self) -> None:
        remove_below(self._directory)


def _cpus(cpu_max: str) -> float:
    quota, _, period = cpu_max.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period else math.inf
