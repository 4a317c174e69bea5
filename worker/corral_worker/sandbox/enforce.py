"""The limits that no kernel holds: a program that reaches one is ended by corral."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread

from corral import EffectiveLimits
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.disk import DiskWatch
from corral_worker.sandbox.stop import Stop

_CPU_LOOK_S = 0.02


async def enforce(
    limits: EffectiveLimits, counters: Callable[[], Counters], control: ControlSocket, stop: Stop
) -> None:
    """Ask for the end of a program that runs when it reaches a limit only corral enforces.

    Args:
        limits: the job's.
        counters: what the program used so far; blocks for about a millisecond.
        control: the sandbox's control socket.
        stop: where the end is asked for.
    """
    async with anyio.create_task_group() as watchers:
        watchers.start_soon(_watch_cpu, limits, counters, stop)
        disk = DiskWatch(most=limits.disk_bytes, counters=counters, control=control)
        watchers.start_soon(disk.watch, stop)
        await anyio.sleep(limits.wall_s)
        stop.request("wall_timeout")
        watchers.cancel_scope.cancel()


async def _watch_cpu(limits: EffectiveLimits, counters: Callable[[], Counters], stop: Stop) -> None:
    """Ask for the end when the processor time is used up."""
    while True:
        left = limits.cpu_time_s - (await anyio.to_thread.run_sync(counters)).cpu_s
        if left <= 0:
            stop.request("cpu_timeout")
            return
        # Below its rate limit the sandbox cannot get there any sooner.
        await anyio.sleep(max(left / limits.cpus, _CPU_LOOK_S))
