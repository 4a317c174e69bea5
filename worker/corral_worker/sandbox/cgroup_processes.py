"""The processes of a cgroup: which they are to each other, their signals, their end."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from corral_worker.sandbox.cgroup import SandboxCgroup, read

_SETTLE_S = 0.0005


def wait_until_empty(cgroup: SandboxCgroup, within_s: float) -> bool:
    """Return whether the cgroup is empty, at the latest after ``within_s`` seconds."""
    deadline = time.monotonic() + within_s
    while pids := cgroup.processes():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        _wait_for_all(pids, left_s)
        # One that has ended stays in the list for some 0.3 ms more, and another process
        # that reads it all the time would make that longer.
        time.sleep(_SETTLE_S)
    return True


def _wait_for_all(pids: Iterable[int], within_s: float) -> None:
    """Wait until the processes have ended; those that cannot be waited for count as ended."""
    deadline = time.monotonic() + within_s
    alive = select.poll()
    with ExitStack() as descriptors:
        count = 0
        for pid in pids:
            with suppress(OSError):
                descriptor = os.pidfd_open(pid)
                descriptors.callback(os.close, descriptor)
                alive.register(descriptor, select.POLLIN)
                count += 1
        while count and (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _ in alive.poll(1000 * left_s):
                alive.unregister(descriptor)
                count -= 1


def signal_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to each, to parents before their children; gone already is no error.

    A sentry that outlives the host process of a guest takes that for the program's
    own end, and reports exit code 1.
    """
    # The kernel shows a process of another pid namespace as 0: for kill(2) that is ourselves.
    alive = {pid for pid in pids if pid}
    first = heads(alive)
    for pid in sorted(alive, key=lambda pid: pid not in first):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def heads(pids: set[int]) -> set[int]:
    """Return those whose parent is none of them: of all processes of a sandbox, its sentry."""
    return {pid for pid in pids if _parent(pid) not in pids}


def _parent(pid: int) -> int:
    _, _, fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")
    return int(fields.split()[1]) if fields else 0
