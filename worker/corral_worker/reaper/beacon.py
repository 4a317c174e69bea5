"""The cgroup that tells whether those of the same mark belong to somebody who lives."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from corral_worker.reaper.lock import DirectoryLock
from corral_worker.sandbox.cgroup import make
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import worker_of


class Beacon:
    """An empty cgroup, locked for as long as the process that made it lives.

    Made by :meth:`light`, before any other cgroup of its mark: if the process is
    killed, whatever of the mark is left can be told to be nobody's.

    Attributes:
        worker: the mark.
        lock: its lock.
    """

    def __init__(self, worker: str, cgroups: CgroupHost, lock: DirectoryLock) -> None:
        self.worker = worker
        self.lock = lock
        self._cgroups = cgroups

    @classmethod
    def light(cls, cgroups: CgroupHost) -> Beacon:
        """Make one under a mark that nobody has.

        Raises:
            CgroupError: the kernel refuses.
            OSError: it cannot be locked.
        """
        worker = ""

        def made() -> Path:
            nonlocal worker
            worker = secrets.token_hex(4)
            beacon = cgroups.beacon(worker)
            make(beacon)
            return beacon

        lock = DirectoryLock.of_new(made)
        return cls(worker, cgroups, lock)

    def put_out(self) -> None:
        """Remove it if no other cgroup of its mark is left, and give up the lock.

        What could not be removed is a leftover from now on.
        """
        others = self._cgroups.names() - {self.lock.path.name}
        if not any(worker_of(name) == self.worker for name in others):
            with suppress(OSError):
                self.lock.path.rmdir()
        self.lock.close()
