"""The limit of what a sandbox's writable directories hold together.

Each of them is a tmpfs of its own, and full at the limit: gVisor has nothing
that would bound their sum. So it is watched, see
``docs/adr/0004-disk-in-sum-is-watched.md``.
"""

from __future__ import annotations

import structlog

from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.containers import RefusedError, SandboxLostError
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.outcome import KillCause

SLACK_BYTES = 1024 * 1024
"""A program that has filled one directory may still note that in another."""

_ANSWER_WITHIN_S = 2.0
_SAID = 200
"""Characters of a sandbox's words that go into the log."""


class DiskLimit:
    """Knows whether a sandbox's writable directories hold too much.

    Args:
        most: bytes they may hold together.
        control: asks the sandbox.
    """

    def __init__(self, most: int, control: ControlSocket) -> None:
        self._most = most + SLACK_BYTES
        self._control = control
        self._log = structlog.get_logger()

    def is_near(self, used: Counters) -> bool:
        """Return whether the sandbox has half of the memory that too many files would take."""
        return 2 * used.memory_bytes > self._most

    async def look(self, used: Counters, *, within_s: float) -> KillCause | None:
        """Return why the sandbox must end now, if it must; what does not answer need not yet."""
        # Files lie in memory: as long as there is less of that, nobody need be asked.
        if used.memory_bytes <= self._most:
            return None
        try:
            held = await self._control.file_bytes(
                within_s=max(0.0, min(within_s, _ANSWER_WITHIN_S))
            )
        except (SandboxLostError, TimeoutError):
            return None  # it has ended, or is not there yet, or takes too long
        except RefusedError as error:
            self._log.error("sandbox.disk_unknown", detail=str(error)[:_SAID])
            return "unenforceable"
        return "disk_exceeded" if held > self._most else None
