"""One look over the host, with or without a broom."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from corral_worker.reaper.estate import Doubt, Estate, Estates
from corral_worker.reaper.removal import Removal
from corral_worker.reaper.temporary import TemporaryDirectories
from corral_worker.reaper.trace import (
    NETWORK_NAMESPACES,
    Counts,
    Kind,
    Trace,
    cgroups_of,
    files_of,
    mounts_of,
    network_namespaces_of,
    processes,
    processes_of,
)
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is on the host and belongs to nobody who lives."""

    dead: tuple[Trace, ...] = ()
    """Of workers that are dead."""
    strays: tuple[Trace, ...] = ()
    """Of this worker, though it does not hold their sandboxes; the youngest may be on their way."""
    doubts: tuple[Doubt, ...] = ()
    """What may be a leftover and will be left alone."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed at one time."""

    dead: Counts = Counts()
    """Of workers that were dead."""
    strays: tuple[Trace, ...] = ()
    """Of this worker: each is a mistake in corral."""
    left: tuple[Doubt, ...] = ()
    """What could not be removed, or not be told to be a leftover."""
    complete: bool = True
    """Whether it came to an end in time."""

    @property
    def removed(self) -> Counts:
        """All that was removed."""
        return self.dead + Counts.of(*(stray.kind for stray in self.strays))


class Deadline:
    """When a sweep is to end: at its time, or as soon as somebody says so."""

    def __init__(self, within_s: float) -> None:
        self._ends_at = time.monotonic() + within_s
        self._ended = threading.Event()

    def end(self) -> None:
        """Say that it is now. From any thread."""
        self._ended.set()

    @property
    def left_s(self) -> float:
        """Seconds until then; 0 once it has come."""
        return 0.0 if self._ended.is_set() else max(0.0, self._ends_at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has come."""
        return not self.left_s


class Sweeper:
    """Goes over the host. Everything blocks: call it in threads, of which one works at a time.

    Args:
        state_dir: where workers have their directories.
        cgroups: below whose parent they have their cgroups.
        own: mark and directory of the worker that it is part of, if any.
        network_namespaces: where ip(8) keeps them by name.
        temporary: where provers have directories.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        cgroups: CgroupHost,
        own: tuple[str, Path] | None,
        network_namespaces: Path = NETWORK_NAMESPACES,
        temporary: TemporaryDirectories | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._cgroups = cgroups
        self._estates = Estates(state_dir, cgroups)
        self._own = own
        self._network_namespaces = network_namespaces
        self._temporary = temporary or TemporaryDirectories()
        self._suspects: frozenset[Trace] = frozenset()
        # If one hangs in a file system, others must not pile up behind it.
        self._turn = threading.Lock()

    def survey(self, held: frozenset[str], deadline: Deadline) -> Survey:
        """Look, and change nothing. ``held`` was read before.

        Raises:
            TimeoutError: another one works until the deadline.
        """
        with self._in_turn(deadline):
            return self._survey(held)

    def sweep(self, held: frozenset[str], deadline: Deadline) -> Sweep:
        """Remove what dead workers left, and strays that are seen for the second time.

        Raises:
            TimeoutError: another one works until the deadline.
        """
        with self._in_turn(deadline):
            return self._sweep(held, deadline)

    @contextmanager
    def _in_turn(self, deadline: Deadline) -> Iterator[None]:
        if not self._turn.acquire(timeout=deadline.left_s):
            raise TimeoutError
        try:
            yield
        finally:
            self._turn.release()

    def _survey(self, held: frozenset[str]) -> Survey:
        dead: list[Trace] = []
        doubts: list[Doubt] = []
        seen = tuple(processes())
        for found in self._others(shared=True):
            if isinstance(found, Doubt):
                doubts.append(found)
            else:
                dead += self._traces_of(found, seen)
        dead += (
            Trace(kind="directory", worker=mark, name=str(lock.path))
            for mark, lock in self._temporary.abandoned(shared=True)
        )
        return Survey(
            dead=tuple(dead), strays=tuple(self._strays(held, seen)), doubts=tuple(doubts)
        )

    def _sweep(self, held: frozenset[str], deadline: Deadline) -> Sweep:
        left: list[Doubt] = []
        dead: list[Kind] = []
        seen = tuple(processes())
        for found in self._others(shared=False):
            if isinstance(found, Doubt):
                left.append(found)
                continue
            opened = found.directory
            removal = Removal(self._cgroups, (opened.path, opened.descriptor) if opened else None)
            traces = self._traces_of(found, seen)
            dead += (item.kind for item in _removed(traces, removal, deadline, left))
            found.settle()
            if deadline.is_over:
                break
        for mark, lock in self._temporary.abandoned(shared=False):
            removal = Removal(self._cgroups, (lock.path, lock.descriptor))
            found_there = Trace(kind="directory", worker=mark, name=str(lock.path))
            dead += (item.kind for item in _removed([found_there], removal, deadline, left))
        strays = tuple(self._strays(held, seen))
        again = [stray for stray in strays if stray in self._suspects]
        self._suspects = frozenset(strays)
        return Sweep(
            dead=Counts.of(*dead),
            strays=tuple(self._removed_again(again, deadline, left)),
            left=tuple(left),
            complete=not deadline.is_over,
        )

    def _removed_again(
        self, strays: Iterable[Trace], deadline: Deadline, left: list[Doubt]
    ) -> Iterator[Trace]:
        with ExitStack() as stack:
            opened = None
            # Gone by somebody else's hand, it is no reason to leave the rest.
            with suppress(OSError):
                if self._own:
                    opened = (self._own[1], stack.enter_context(_opened(self._own[1])))
            yield from _removed(strays, Removal(self._cgroups, opened), deadline, left)

    def _others(self, *, shared: bool) -> Iterator[Estate | Doubt]:
        """Yield dead workers, each locked until the next."""
        own = {self._own[0]} if self._own else set()
        for worker in sorted(self._estates.workers() - own):
            with ExitStack() as locks:
                found = self._estates.open(worker, locks, shared=shared)
                if found is not None:
                    yield found

    def _traces_of(self, estate: Estate, seen: Iterable[Trace]) -> Iterator[Trace]:
        """Yield what a dead worker left, in the order in which it can be removed."""
        worker = estate.worker
        groups = [(host, group) for host in estate.cgroups for group in cgroups_of(worker, host)]
        yield from _distinct(
            [
                *(process for process in seen if process.worker == worker and estate.had(process)),
                *(process for host, group in groups for process in processes_of(group, host)),
            ]
        )
        yield from (group for _, group in groups)
        path = self._state_dir / f"w-{worker}"
        yield from mounts_of(worker, path)
        yield from network_namespaces_of(worker, self._network_namespaces)
        if estate.directory is not None:
            yield from files_of(worker, estate.directory.descriptor)
            yield Trace(kind="directory", worker=worker, name=str(path))

    def _strays(self, held: frozenset[str], seen: Iterable[Trace]) -> Iterator[Trace]:
        """Yield what has a name of this worker's, of a sandbox that it does not hold."""
        if self._own is None:
            return
        worker, path = self._own
        groups = [group for group in cgroups_of(worker, self._cgroups) if group.sandbox not in held]
        found = (
            *_distinct(
                [
                    *(process for process in seen if process.worker == worker),
                    *(
                        process
                        for group in groups
                        for process in processes_of(group, self._cgroups)
                    ),
                ]
            ),
            *groups,
            *mounts_of(worker, path),
            *network_namespaces_of(worker, self._network_namespaces),
            *files_of(worker, path),
        )
        yield from (item for item in found if item.sandbox is not None and item.sandbox not in held)


def _removed(
    traces: Iterable[Trace], removal: Removal, deadline: Deadline, left: list[Doubt]
) -> Iterator[Trace]:
    """Remove and yield one after the other; those that stay are added to ``left``."""
    for item in traces:
        if deadline.is_over:
            return
        try:
            removal.remove(item)
        except (CgroupError, OSError) as error:
            left.append(Doubt(name=item.name, reason=str(error)))
        else:
            yield item


def _distinct(found: Sequence[Trace]) -> Iterator[Trace]:
    """Yield each process once, however it was found."""
    yield from {trace.process: trace for trace in reversed(found)}.values()


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(directory, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
