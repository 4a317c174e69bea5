"""Short blocking calls beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")
_NEEDED_ALWAYS: RunVar[anyio.CapacityLimiter] = RunVar("corral_worker.process.thread.needed_always")
_CALLS = 40
"""As many as anyio has for all that name no limiter."""


async def in_thread(
    function: Callable[[Unpack[_Arguments]], _Result],
    *arguments: *_Arguments,
    limiter: anyio.CapacityLimiter | None = None,
) -> _Result:
    """Call what blocks for milliseconds, seconds at worst, in a thread, and return its result.

    A host that has no task left, by the limit of a cgroup, a user or the kernel, starts no
    thread. Then it is called right here and blocks the event loop: sandboxes are to be ended,
    and the host to be looked at, above all when that is so.

    Args:
        function: what is called.
        arguments: its arguments.
        limiter: how many such calls there may be at one time; else one for all calls without it.
    """
    begun = False

    def call() -> _Result:
        nonlocal begun
        begun = True
        return function(*arguments)

    try:
        return await anyio.to_thread.run_sync(call, limiter=limiter)
    except RuntimeError:
        if begun:
            raise
    return function(*arguments)


def needed_always() -> anyio.CapacityLimiter:
    """Return the limiter of calls without which a sandbox cannot be watched, or ended.

    They touch nothing but what the kernel keeps in memory. A disk that stands still takes all
    threads of those who do: it must not take theirs, too. One for each run of the event loop.
    """
    limiter = _NEEDED_ALWAYS.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_CALLS)
        _NEEDED_ALWAYS.set(limiter)
    return limiter
