"""Orphans of this worker: adopted, and reaped when they have ended."""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

from corral_worker.process.child import owned_pids

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_LOOK_AGAIN_S = 0.1
"""An orphan is a zombie for this long at most. A look costs one system call, if there is none."""


@asynccontextmanager
async def reaping() -> AsyncIterator[None]:
    """Adopt what the children of this process leave behind, for the block, and reap it.

    A ``runsc run`` that is killed orphans its sandbox. Else PID 1 inherits it, and
    where that reaps slowly, or not at all as in many a container, a zombie stays, and
    ``runsc delete`` waits for it to go.

    The status of an owned child is never taken: fork, registration, the last wait and
    the look for orphans all happen in the event loop's thread with no await in between,
    so that a child is never seen before it is registered. It follows that while this
    runs :func:`~corral_worker.process.child.child_process` is the only way to start one
    whose status matters.

    Raises:
        OSError: the kernel does not let this process adopt.
    """
    if not _children_file().exists():
        # A kernel that does not list them (CONFIG_PROC_CHILDREN): what cannot be found
        # is better left to PID 1.
        yield
        return
    before = _subreaper()
    _set_subreaper(1)
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_reap_for_ever)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised below: not as part of a group
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        _reap_orphans()
        _set_subreaper(before)
    if failure:
        raise failure


async def _reap_for_ever() -> None:
    # Not at SIGCHLD: Python passes all signals through one pipe, and so many children
    # can end together that it overflows and a SIGTERM is lost.
    while True:
        await anyio.sleep(_LOOK_AGAIN_S)
        _reap_orphans()


def _reap_orphans() -> None:
    """Reap all that have ended and that nobody owns. Takes a millisecond at most."""
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
    except ChildProcessError:
        return
    try:
        children = {int(pid) for pid in _children_file().read_text().split()}
    except OSError:
        return  # no file descriptor is left for it: the next look may find one
    for pid in children - owned_pids():
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _children_file() -> Path:
    # The kernel gives orphans to the main thread, whose number is that of the process.
    return Path(f"/proc/self/task/{os.getpid()}/children")


def _subreaper() -> int:
    answer = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))
    return answer.value


def _set_subreaper(value: int) -> None:
    _prctl(_PR_SET_CHILD_SUBREAPER, value)


def _prctl(option: int, argument: int) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    prctl.restype = ctypes.c_int
    if prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")
