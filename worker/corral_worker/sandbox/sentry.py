"""The process on the host that a sandbox is."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from corral_worker.sandbox.cgroup import SandboxCgroup
from corral_worker.sandbox.cgroup_processes import heads


class Sentry:
    """The sentry of one sandbox, which can be made to stand still. Gone already is no error.

    What stands still costs no processor and dies of SIGKILL like anything else; but it answers
    nobody. Its block owns the descriptor and does not continue what was stopped.

    Args:
        cgroup: the sandbox's. Everything in it descends from its sentry.
    """

    def __init__(self, cgroup: SandboxCgroup) -> None:
        self._cgroup = cgroup
        self._owned = ExitStack()
        self._pidfd: int | None = None
        self._stands = False

    def __enter__(self) -> Self:
        """Return the sentry itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forget the process."""
        self._pidfd = None
        self._owned.close()

    def find(self) -> None:
        """Look for the process; before it was found, :meth:`stop` does nothing.

        Blocks for about a millisecond: call it in a thread. It is not found if it is gone, or if
        the cgroup holds more than one process whose parent is elsewhere.

        Raises:
            OSError: the host cannot say, or has no descriptor for it.
        """
        found = heads(self._cgroup.processes())
        if len(found) != 1:
            return
        (pid,) = found
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            self._owned.callback(os.close, pidfd)
            # The number may have gone to another process before it was opened.
            if pid in self._cgroup.processes():
                self._pidfd = pidfd

    def stop(self) -> None:
        """Make it stand still, if it does not."""
        if self._pidfd is not None and not self._stands:
            self._stands = _sent(self._pidfd, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on from where it stands, if it does."""
        if self._pidfd is not None and self._stands:
            self._stands = not _sent(self._pidfd, signal.SIGCONT)


def _sent(pidfd: int, number: signal.Signals) -> bool:
    # Those who may not stop it (PermissionError) need not continue it either.
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)
        return True
    return False
