"""A worker as a child process, for the demo."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import BinaryIO, TypeVar

import anyio
from anyio.abc import Process

T = TypeVar("T")

_LOG_SHOWN_BYTES = 8 * 1024


class WorkerFailed(Exception):
    """Raised if the worker ended by itself or badly. Holds the end of its log."""


async def beside_worker(
    work: Callable[[], Awaitable[T]], *, environ: Mapping[str, str], stop_within_s: float
) -> T:
    """Do ``work`` while a ``corral worker`` runs, then stop that by SIGTERM.

    Whatever happens, and on cancellation too, the worker is gone afterwards.
    ``work`` is cancelled if the worker ends first; it is to raise nothing.

    Raises:
        WorkerFailed: the worker ended by itself, or not well and in time.
    """
    with tempfile.TemporaryFile(prefix="corral-demo-") as log:
        # A session of its own: Ctrl-C is to reach it through us alone.
        process = await anyio.open_process(
            [sys.executable, "-m", "corral_worker", "worker"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        done: list[T] = []
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_at_end, process, tasks.cancel_scope)
                done.append(await work())
                tasks.cancel_scope.cancel()
        finally:
            await _stop(process, stop_within_s)
        if not done or process.returncode != 0:
            raise WorkerFailed(_story(process.returncode, log))
        return done[0]


async def _cancel_at_end(process: Process, scope: anyio.CancelScope) -> None:
    await process.wait()
    scope.cancel()


async def _stop(process: Process, within_s: float) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(within_s, shield=True):
            await process.wait()
    with anyio.CancelScope(shield=True):
        await process.aclose()


def _story(status: int | None, log: BinaryIO) -> str:
    log.seek(max(0, log.seek(0, 2) - _LOG_SHOWN_BYTES))
    text = log.read().decode(errors="replace").rstrip()
    return f"the worker ended with status {status}; the end of its log:\n{text}"
