"""What a worker owns on the host for as long as its process lives.

Each thing that workers share carries a lock of its own: the state directory by a
directory for each worker, the cgroup parent by an empty cgroup for each worker,
its *beacon*. So it is told who lives wherever one of the two is shared, in
whatever namespaces the workers run. See ``docs/adr/0005-locks-tell-who-lives.md``.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from corral_worker.process.identity import ProcessIdentity, boot_id
from corral_worker.reaper.beacon import Beacon
from corral_worker.reaper.lock import DirectoryLock
from corral_worker.sandbox.cgroup_host import CgroupHost

_ATTEMPTS = 5
_OWNER_FILE = "owner"
_OWNER_BYTES = 4096


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who made a worker's directory; stands in it as JSON."""

    process: ProcessIdentity
    boot_id: str
    cgroup_parent: str
    created_at: dt.datetime

    @property
    def is_alive(self) -> bool:
        """Whether the process is seen to run: other pid namespaces do not show it."""
        return self.boot_id == boot_id() and self.process.is_alive()


class Claim:
    """A worker's directory and beacon, both locked.

    Made by :meth:`make`. Every cgroup and file of a worker is made after that
    and named after its mark, so none is ever seen without somebody to whom it
    belongs. All methods block for some milliseconds: call them in a thread.

    Attributes:
        worker: the worker's mark.
        directory: the worker's directory.
    """

    def __init__(self, cgroups: CgroupHost, directory: DirectoryLock, beacon: Beacon) -> None:
        self.worker = beacon.worker
        self.directory = directory.path
        self._cgroups = cgroups
        self._lock = directory
        self._beacon = beacon

    @property
    def runsc_root(self) -> Path:
        """Where runsc keeps its state."""
        return self.directory / "r"

    @property
    def runs(self) -> Path:
        """Where the bundles are."""
        return self.directory / "b"

    @classmethod
    def make(cls, state_dir: Path, cgroups: CgroupHost) -> Claim:
        """Make directory and beacon under a mark that nobody has.

        Raises:
            CgroupError: the beacon cannot be made.
            OSError: the directory cannot be made.
        """
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(_ATTEMPTS):
            # A reaper that comes between making and locking takes it for a dead worker's.
            with suppress(BlockingIOError, FileNotFoundError):
                return cls._make(state_dir, cgroups)
        return cls._make(state_dir, cgroups)

    @classmethod
    def _make(cls, state_dir: Path, cgroups: CgroupHost) -> Claim:
        beacon = Beacon.light(cgroups)
        try:
            path = state_dir / f"w-{beacon.worker}"
            path.mkdir(mode=0o700)
            directory = DirectoryLock.take_new(path)
        except OSError:
            beacon.put_out()
            raise
        claim = cls(cgroups, directory, beacon)
        try:
            _write_owner(directory, cgroups.parent)
            # Only now: without them the directory is known to be of no use to anyone.
            claim.runsc_root.mkdir(mode=0o700)
            claim.runs.mkdir(mode=0o700)
        except OSError:
            claim.release()
            raise
        return claim

    def release(self) -> None:
        """Remove the directory, and the beacon if no cgroup of this worker is left.

        What cannot be removed is a leftover of a dead worker from now on.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        self._beacon.put_out()
        self._lock.close()
        self._cgroups.release()


def read_owner(directory: DirectoryLock) -> Owner | None:
    """Return who made a worker's directory; None if it does not say, or not credibly."""
    try:
        descriptor = os.open(
            _OWNER_FILE,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=directory.descriptor,
        )
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return None
        return msgspec.json.decode(os.read(descriptor, _OWNER_BYTES), type=Owner)
    except (ValueError, OSError):
        return None
    finally:
        os.close(descriptor)


def _write_owner(directory: DirectoryLock, cgroup_parent: str) -> None:
    process = ProcessIdentity.of(os.getpid())
    if process is None:
        raise FileNotFoundError(0, "/proc does not show this process", "/proc")
    owner = Owner(
        process=process,
        boot_id=boot_id(),
        cgroup_parent=cgroup_parent,
        created_at=dt.datetime.now(dt.UTC),
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(_OWNER_FILE, flags, 0o600, dir_fd=directory.descriptor)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(owner))
        file.flush()
        # It is to be readable after a loss of power, if anything else below the directory is.
        os.fsync(file.fileno())
