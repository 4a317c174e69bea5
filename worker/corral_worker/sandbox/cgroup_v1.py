"""Sandbox cgroups on a host with version 1 hierarchies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from corral import HostLimits
from corral_worker.sandbox.cgroup import (
    CgroupError,
    Counters,
    check_held,
    check_no_swap,
    is_there,
    make,
    pids_below,
    read_field,
    read_number,
    remove_below,
    write,
)
from corral_worker.sandbox.cgroup_processes import signal_all

NEEDED = frozenset({"memory", "pids", "cpu", "cpuacct"})
"""Controllers without which limits would not hold."""

_PERIOD_US = 100_000
# The same for all: only among sandboxes does it count. With the kernel's own 1024 one that
# computes keeps all else on the host waiting for seconds: docs/adr/0012-sandboxes-weigh-little.md.
_SHARES = "16"
_WAITING_SHARES = "2"


class CgroupV1:
    """One directory in each hierarchy.

    runsc joins the ones it finds and neither changes nor removes them; in the
    hierarchies that corral does not need it makes its own, of the same path.
    It has to be the sandbox's very own: version 1 counts an out-of-memory kill
    only in the cgroup of the victim.

    Args:
        hierarchies: mount point of each controller.
        path: the cgroup's path in all of them, beginning with a slash.
    """

    def __init__(self, hierarchies: Mapping[str, Path], path: str) -> None:
        self._path = path
        self._directories = {
            controller: f"{mount}/{path.lstrip('/')}" for controller, mount in hierarchies.items()
        }
        self._memory = self._directories["memory"]
        self._pids = self._directories["pids"]
        self._cpu = self._directories["cpu"]
        self._cpuacct = self._directories["cpuacct"]

    @property
    def runsc_path(self) -> str:
        return self._path

    def create(self, limits: HostLimits) -> HostLimits:
        for directory in {self._memory, self._pids, self._cpu, self._cpuacct}:
            make(directory)
        write(f"{self._cpu}/cpu.shares", _SHARES)
        return self.limit(limits)

    def limit(self, limits: HostLimits) -> HostLimits:
        write(f"{self._memory}/memory.limit_in_bytes", str(limits.memory_bytes))
        swap = f"{self._memory}/memory.memsw.limit_in_bytes"
        if is_there(swap):
            # This one counts memory and swap together: equal means no swap.
            write(swap, str(limits.memory_bytes))
        else:
            check_no_swap()
        write(f"{self._pids}/pids.max", str(limits.tasks))
        write(f"{self._cpu}/cpu.cfs_period_us", str(_PERIOD_US))
        quota = -1 if math.isinf(limits.cpus) else int(limits.cpus * _PERIOD_US)
        write(f"{self._cpu}/cpu.cfs_quota_us", str(quota))
        memory = read_number(f"{self._memory}/memory.limit_in_bytes")
        quota = read_number(f"{self._cpu}/cpu.cfs_quota_us")
        return check_held(
            limits,
            HostLimits(
                memory_bytes=memory,
                swap_bytes=read_number(swap) - memory if is_there(swap) else None,
                cpus=quota / _PERIOD_US if quota > 0 else math.inf,
                tasks=read_number(f"{self._pids}/pids.max"),
            ),
        )

    def counters(self) -> Counters:
        peak = f"{self._pids}/pids.peak"
        return Counters(
            cpu_s=read_number(f"{self._cpuacct}/cpuacct.usage") / 1e9,
            peak_memory_bytes=read_number(f"{self._memory}/memory.max_usage_in_bytes"),
            peak_tasks=read_number(peak) if is_there(peak) else None,
            oom_kills=read_field(f"{self._memory}/memory.oom_control", "oom_kill"),
            memory_bytes=read_number(f"{self._memory}/memory.usage_in_bytes"),
        )

    def yield_processor(self) -> None:
        write(f"{self._cpu}/cpu.shares", _WAITING_SHARES)

    def begin(self) -> None:
        write(f"{self._cpu}/cpu.shares", _SHARES)
        write(f"{self._memory}/memory.max_usage_in_bytes", "0")

    def processes(self) -> set[int]:
        return pids_below(self._pids) | pids_below(self._memory)

    def kill(self) -> None:
        signal_all(self.processes())
        # At its limit the scheduler would let it die only bit by bit.
        with suppress(CgroupError):
            write(f"{self._cpu}/cpu.cfs_quota_us", "-1")
        # What is frozen would not die at all.
        if "freezer" in self._directories:
            with suppress(CgroupError):
                write(f"{self._directories['freezer']}/freezer.state", "THAWED")

    def remove(self) -> None:
        for directory in set(self._directories.values()):
            remove_below(directory)
