"""The limits that no kernel holds: a program that reaches one is ended by corral."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from corral import EffectiveLimits
from corral_worker.process.thread import in_thread, needed_always
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.disk import DiskLimit
from corral_worker.sandbox.outcome import KillCause
from corral_worker.sandbox.stop import Stop

_LOOK_S = 0.2
_SELDOM_S = 1.0
"""While a program has little, a look at it is worth less than what many of them cost together."""
_LOOK_CLOSELY_S = 0.02


@contextmanager
def enforcing(
    limits: EffectiveLimits,
    counters: Callable[[], Counters],
    control: ControlSocket,
    stop: Stop,
    tasks: anyio.abc.TaskGroup,
    *,
    since: float,
) -> Iterator[None]:
    """Do what :func:`enforce` does for the length of the block, in a task if it lasts.

    Most programs have ended before the first look: they cost no task.
    """
    scope = anyio.CancelScope()

    async def look() -> None:
        with scope:
            await enforce(limits, counters, control, stop, since=since)

    first_s = since + min(_LOOK_S, *_bounds_s(limits)) - time.monotonic()
    later = asyncio.get_running_loop().call_later(max(0.0, first_s), tasks.start_soon, look)
    try:
        yield
    finally:
        later.cancel()
        scope.cancel()


async def enforce(
    limits: EffectiveLimits,
    counters: Callable[[], Counters],
    control: ControlSocket,
    stop: Stop,
    *,
    since: float,
) -> None:
    """Ask for the end of a program when it reaches a limit only corral enforces.

    Returns as soon as anybody has asked. Its wall limit holds however long any call takes.

    Args:
        limits: the job's.
        counters: what the program used so far; blocks for about a millisecond.
        control: the sandbox's control socket.
        stop: where the end is asked for.
        since: when the program started, in monotonic seconds.
    """
    wall_s, cpu_s = _bounds_s(limits)
    wall = asyncio.get_running_loop().call_later(
        max(0.0, since + wall_s - time.monotonic()), stop.request, "wall_timeout"
    )
    try:
        with anyio.CancelScope() as scope, stop.cancelling(scope):
            stop.request(await _exceeded(limits, counters, control, since, cpu_at=since + cpu_s))
    finally:
        wall.cancel()


async def _exceeded(
    limits: EffectiveLimits,
    counters: Callable[[], Counters],
    control: ControlSocket,
    since: float,
    *,
    cpu_at: float,
) -> KillCause:
    """Look at a program again and again, and return why it is to be ended."""
    disk = DiskLimit(limits.disk_bytes, control)
    look_s = _LOOK_S
    look_at = since + look_s
    while True:
        await anyio.sleep(max(0.0, min(cpu_at, look_at) - time.monotonic()))
        now = time.monotonic()
        used = await in_thread(counters, limiter=needed_always())
        cpu_left_s = limits.cpu_time_s - used.cpu_s
        if cpu_left_s <= 0:
            return "cpu_timeout"
        cpu_at = now + max(cpu_left_s / limits.cpus, _LOOK_CLOSELY_S)
        look_s = _LOOK_S if disk.is_near(used) else min(2 * look_s, _SELDOM_S)
        # Whatever the sandbox takes to answer, the other limit holds meanwhile.
        cause = await disk.look(used, within_s=cpu_at - time.monotonic())
        if cause is not None:
            return cause
        look_at = now + look_s


def _bounds_s(limits: EffectiveLimits) -> tuple[float, float]:
    """Return the seconds of its wall limit, and those before which its processor time lasts."""
    # Below its rate limit the program cannot use its processor time up any sooner.
    return limits.wall_s, limits.cpu_time_s / limits.cpus
