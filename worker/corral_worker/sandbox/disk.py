"""The limit of what a sandbox's writable directories hold together.

Each of them is a tmpfs of its own, and full at the limit: gVisor has nothing
that would bound their sum. So it is watched, see
``docs/adr/0004-disk-in-sum-is-watched.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.sentry import SentryError, file_bytes
from corral_worker.sandbox.stop import Stop

SLACK_BYTES = 1024 * 1024
"""A program that has filled one directory may still note that in another."""

_LOOK_S = 0.2
_ANSWER_WITHIN_S = 2.0


class DiskWatch:
    """Asks for a sandbox's end when its writable directories hold too much.

    Args:
        most: bytes they may hold together.
        counters: the cgroup's counters; blocks for about a millisecond.
        socket: the sentry's control socket.
    """

    def __init__(self, *, most: int, counters: Callable[[], Counters], socket: Path) -> None:
        self._most = most + SLACK_BYTES
        self._counters = counters
        self._socket = socket
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
                held = await file_bytes(self._socket, within_s=_ANSWER_WITHIN_S)
            except SentryError as error:
                self._log.error("sandbox.disk_unknown", socket=str(self._socket), detail=str(error))
                stop.request("unenforceable")
                return
            if held is not None and held > self._most:
                stop.request("disk_exceeded")
                return
