"""What dead workers own, told from what belongs to living ones."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from corral_worker import settings_rules
from corral_worker.process.identity import boot_id
from corral_worker.reaper.claim import Owner, read_owner
from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.trace import BUNDLES, STATE_FILES, Trace, names_in
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import worker_of

_DIRECTORY = re.compile(r"w-([0-9a-f]{8})\Z")


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """What is left alone, and why."""

    name: str
    reason: str


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """A dead worker, and what of it this host shows. Locked against other reapers."""

    worker: str
    directory: DirectoryLock | None
    owner: Owner | None
    cgroups: tuple[CgroupHost, ...]
    """This host, once for every parent that the worker may have cgroups below; first the one in
    use."""
    beacons: tuple[tuple[CgroupHost, Path], ...]
    """The worker's beacons that are there, and below which parent."""

    def settle(self) -> None:
        """Remove the beacons of a worker that has no other cgroup any more."""
        _, *of_old = self.cgroups
        for host, beacon in self.beacons:
            if {name for name in host.names() if worker_of(name) == self.worker} == {beacon.name}:
                with suppress(OSError):
                    beacon.rmdir()
        for host in of_old:
            host.release()

    def had(self, process: Trace) -> bool:
        """Return whether a process can have been the worker's: none is older than it."""
        if self.owner is None or process.process is None:
            return True
        same_boot = self.owner.boot_id == boot_id()
        return same_boot and process.process.started >= self.owner.process.started


class Estates:
    """Finds dead workers below one state directory and one cgroup parent.

    A worker is dead if at least one of its locks can be taken, none is held, and
    its process is not seen to run. Anything less leaves it alone.

    Args:
        state_dir: where workers have their directories.
        cgroups: where they have their cgroups.
    """

    def __init__(self, state_dir: Path, cgroups: CgroupHost) -> None:
        self._state_dir = state_dir
        self._cgroups = cgroups

    def workers(self) -> set[str]:
        """Return the marks of all workers that have a directory or a cgroup, dead or not."""
        names = names_in(self._state_dir)
        found = {match[1] for match in map(_DIRECTORY.match, names) if match}
        return found | {mark for name in self._cgroups.names() if (mark := worker_of(name))}

    def open(self, worker: str, locks: ExitStack, *, shared: bool) -> Estate | Doubt | None:
        """Return what a worker left, or why that cannot be told; None if it left nothing.

        A worker that lives has left nothing.

        Args:
            worker: its mark.
            locks: keeps the locks.
            shared: only look; several can at one time.
        """
        try:
            return self._open(worker, locks, shared=shared)
        except _NothingLeftError:
            return None
        except _InDoubtError as error:
            return error.doubt

    def _open(self, worker: str, locks: ExitStack, *, shared: bool) -> Estate:
        def taken(path: Path) -> DirectoryLock | None:
            try:
                return locks.enter_context(DirectoryLock.take(path, shared=shared))
            except FileNotFoundError:
                return None
            except BlockingIOError as error:
                raise _NothingLeftError from error
            except OSError as error:
                raise _InDoubtError(path, f"is not a worker's: {error.strerror}") from error

        directory = taken(self._state_dir / f"w-{worker}")
        owner = _owner_of(directory) if directory else None
        parents = dict.fromkeys((self._cgroups.parent, *([owner.cgroup_parent] if owner else [])))
        hosts = tuple(self._cgroups.at(parent) for parent in parents)
        beacons = tuple(
            (host, beacon) for host in hosts if taken(beacon := host.beacon(worker)) is not None
        )
        if directory is None and not beacons:
            group = self._cgroups.beacon(worker)
            if worker not in map(worker_of, self._cgroups.names()):
                raise _NothingLeftError  # it has just ended, or another reaper was here
            raise _InDoubtError(
                f"{group}-*", "nothing says whether their worker lives: remove them by hand"
            )
        return Estate(
            worker=worker, directory=directory, owner=owner, cgroups=hosts, beacons=beacons
        )


class _NothingLeftError(Exception):
    """The worker lives, or everything of it is gone."""


class _InDoubtError(Exception):
    def __init__(self, name: object, reason: str) -> None:
        super().__init__(reason)
        self.doubt = Doubt(name=str(name), reason=reason)


def _owner_of(directory: DirectoryLock) -> Owner | None:
    """Return who made a directory; None if whoever it was did not get far."""
    if not directory.is_ours:
        raise _InDoubtError(directory.path, "another user made it, or may write to it")
    owner = _credible(read_owner(directory))
    begun = {STATE_FILES, BUNDLES} & set(names_in(directory.descriptor))
    if owner is None and begun:
        raise _InDoubtError(directory.path, "does not say who made it")
    if owner is not None and owner.is_alive:
        raise _InDoubtError(
            directory.path,
            f"its process {owner.process.pid} runs, though it holds no lock: does the file system"
            " have flock?",
        )
    return owner


def _credible(owner: Owner | None) -> Owner | None:
    if owner is None or owner.cgroup_parent == settings_rules.DELEGATED:
        return None
    return None if any(settings_rules.cgroup_parent(owner.cgroup_parent)) else owner
