"""What has to happen in time from the start of a sandbox until its program's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

from corral_worker.sandbox.ladder import Life
from corral_worker.sandbox.stop import Stop

_LOOK_AGAIN_S = 0.5
"""Seconds between two looks at the state file. Most often the log has told it long before."""


class Watch:
    """Notices when a program begins, and asks for the end of one that does not, for its block.

    It lives by timers, not by a task: most programs have ended before anything is to be done.

    Args:
        life: of the sandbox.
        stop: where the end is asked for.
        start_timeout_s: seconds until the program must run.
        enforcing: given the monotonic seconds at which it began, has its limits enforced for
            a block, which ends with this one.
    """

    def __init__(
        self,
        life: Life,
        stop: Stop,
        *,
        start_timeout_s: float,
        enforcing: Callable[[float], AbstractContextManager[None]],
    ) -> None:
        self._life = life
        self._stop = stop
        self._give_up_at = time.monotonic() + start_timeout_s
        self._enforcing = enforcing
        self._enforced = ExitStack()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Return the watch itself."""
        self._look()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no more."""
        self._cancel()
        self._enforced.close()

    def note(self, chunk: bytes) -> None:
        """Take the next bytes of the log."""
        self._life.note(chunk)
        if self._timer is not None and self._life.notes.begun:
            self._look()

    def _look(self) -> None:
        self._cancel()
        running = self._life.look()
        if running is not None:
            self._enforced.enter_context(self._enforcing(running))
            return
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            self._stop.request("start_timeout")
            return
        self._timer = self._loop.call_later(min(left_s, _LOOK_AGAIN_S), self._look)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
