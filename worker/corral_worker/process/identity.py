"""Which process a number stands for: the kernel gives numbers out again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec

_PROC = Path("/proc")
_START_FIELD = 22 - 3
"""Place of the start time behind the name, which may hold blanks and brackets: proc(5)."""


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One process, and no other that later has its number."""

    pid: int
    started: int
    """Clock ticks from the boot to its start."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return what has this number now; None if nothing has, or only a zombie."""
        try:
            stat = (_PROC / str(pid) / "stat").read_bytes()
            fields = stat[stat.rindex(b")") + 2 :].split()
            if fields[0] in {b"Z", b"X"}:
                return None
            return cls(pid=pid, started=int(fields[_START_FIELD]))
        except (OSError, ValueError, IndexError):
            return None

    def is_alive(self) -> bool:
        """Return whether it still runs, as far as this pid namespace shows."""
        return ProcessIdentity.of(self.pid) == self

    def kill(self) -> None:
        """Send it SIGKILL; gone already is no error.

        Raises:
            OSError: it may not be killed.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor stays with the process it was opened for, whatever has the number.
            if self.is_alive():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)


def boot_id() -> str:
    """Return the kernel's name for the time since it was booted."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
