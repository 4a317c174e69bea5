"""Short blocking calls beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


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
