"""The limit of what a sandbox's writable directories hold together.

Each of them is a tmpfs of its own, and full at the limit: gVisor has nothing
that would bound their sum. So it is watched, see
``docs/adr/0004-disk-in-sum-is-watched.md``.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread
import structlog

from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.control import ControlError, ControlLostError, ControlSocket
from corral_worker.sandbox.stop import Stop

SLACK_BYTES = 1024 * 1024
"""A program that has filled one directory may still note that in another."""

_LOOK_S = 0.2
_ANSWER_WITHIN_S = 2.0
_SAID = 200
"""Characters of a sandbox's words that go into the log."""


class DiskWatch:
    """Asks for a sandbox's end when its writable directories hold too much.

    Args:
        most: bytes they may hold together.
        counters: the cgroup's counters; blocks for about a millisecond.
        control: asks the sandbox.
    """

    def __init__(
        self, *, most: int, counters: Callable[[], Counters], control: ControlSocket
    ) -> None:
        self._most = most + SLACK_BYTES
        self._counters = counters
        self._control = control
        self._log = structlog.get_logger()

    async def watch(self, stop: Stop) -> None:
        """Look until cancelled, or until the end had to be asked for."""
        while True:
            await anyio.sleep(_LOOK_S)
            counters = await anyio.to_thread.run_sync(self._counters)
            # Files lie in memory: as long as there is less of that, nobody need be asked.
            if counters.memory_bytes <= self._most:
                continue
            try:
                held = await self._control.file_bytes(within_s=_ANSWER_WITHIN_S)
            except (ControlLostError, TimeoutError):
                continue  # it has ended, or is not there yet, or takes too long
            except ControlError as error:
                self._log.error("sandbox.disk_unknown", detail=str(error)[:_SAID])
                stop.request("unenforceable")
                return
            if held > self._most:
                stop.request("disk_exceeded")
                return
