"""Finds out whether this host still starts sandboxes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog

from corral import Fault

_WITHIN_S = 60.0
_BETWEEN_S = 5.0
"""Seconds between two that went well: a job that cannot be started may be at fault itself."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 10.0


class Trial:
    """Starts a sandbox of the worker's own after a job's could not be started.

    A host on which none starts ends jobs quicker than any other, and so would take most of all
    there are. Whether it is the host or the job cannot be told from the job.

    Args:
        attempt: starts a sandbox and leaves nothing; what it raises says why that did not work.
    """

    def __init__(self, attempt: Callable[[], Awaitable[None]]) -> None:
        self._attempt = attempt
        self._suspected = anyio.Event()
        self._log = structlog.get_logger()
        self.works = True
        """Whether one started when that was tried last."""

    def suspect(self) -> None:
        """Have it tried soon. Returns at once."""
        self._suspected.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Try when it is suspected, and again until it works, until cancelled.

        Args:
            changed: called when :attr:`works` has changed.
        """
        while True:
            await self._suspected.wait()
            self._suspected = anyio.Event()
            pause_s = _FIRST_PAUSE_S
            while not await self._try(changed):
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await anyio.sleep(_BETWEEN_S)

    async def _try(self, changed: Callable[[], None]) -> bool:
        before = self.works
        try:
            with anyio.fail_after(_WITHIN_S):
                await self._attempt()
        except Exception as error:  # noqa: BLE001 - whatever it is, a job would meet it too
            self.works = False
            if before:
                detail = error.detail if isinstance(error, Fault) else ""
                message = str(error) or type(error).__name__
                self._log.warning("worker.trial_failed", message=message, detail=detail)
        else:
            self.works = True
        if self.works != before:
            changed()
        return self.works
