"""Temporary directories that outlive nobody, not even a killed process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from corral_worker.images.lock import directory_lock

_CLEANUP_S: Final = 60.0
_REMOVE_TRIES: Final = 20
_REMOVE_PAUSE_S: Final = 0.05


class _Held:
    """A directory together with the lock that says its owner lives."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def remove(self) -> None:
        """Remove the tree, then give up the lock.

        Raises :class:`OSError` if something is mounted below it: a host
        directory bound there by a build tool must not be emptied.
        """
        try:
            if _has_mounts(self.path):
                raise OSError(f"{self.path} is not removed, because something is mounted in it")
            for _ in range(_REMOVE_TRIES):
                # A killed tool may write for another moment, so that a
                # directory which was just emptied is not empty.
                shutil.rmtree(self.path, ignore_errors=True)
                if not self.path.exists():
                    return
                time.sleep(_REMOVE_PAUSE_S)
            shutil.rmtree(self.path)
        finally:
            os.close(self._descriptor)


@asynccontextmanager
async def scratch_directory(parent: Path) -> AsyncIterator[Path]:
    """Give a new directory (mode 0700) in ``parent`` for the length of the block.

    It is removed at the end, on cancellation too. What killed processes left
    in ``parent`` is removed first: their locks are gone, whatever the age.
    """
    held, orphans = await anyio.to_thread.run_sync(_claim, parent)
    try:
        await anyio.to_thread.run_sync(_remove_all, orphans)
        yield held.path
    finally:
        with anyio.move_on_after(_CLEANUP_S, shield=True):
            await anyio.to_thread.run_sync(partial(held.remove), abandon_on_cancel=True)


def _claim(parent: Path) -> tuple[_Held, tuple[_Held, ...]]:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Under the lock of the parent nobody sees a directory before it is locked itself.
    with directory_lock(parent):
        fresh = Path(tempfile.mkdtemp(dir=parent))
        held = _try_hold(fresh)
        if held is None:
            raise OSError(f"{fresh} cannot be locked: is its file system without flock()?")
        others = (path for path in parent.iterdir() if path != fresh)
        return held, tuple(orphan for path in others if (orphan := _try_hold(path)))


def _remove_all(orphans: tuple[_Held, ...]) -> None:
    for orphan in orphans:
        with suppress(OSError):  # the next build tries again
            orphan.remove()


def _try_hold(path: Path) -> _Held | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return _Held(path, descriptor)


def _has_mounts(path: Path) -> bool:
    below = f"{path.resolve()}/"
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(f"{line.split()[4]}/".startswith(below) for line in mounts)
