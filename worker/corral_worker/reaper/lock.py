"""A lock on a directory, which the kernel gives up when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_ATTEMPTS = 5


class DirectoryLock:
    """Holds a lock on a directory until it is closed, or the process has ended.

    Made by :meth:`take`. Programs that the worker starts do not inherit it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, shared: bool = False) -> DirectoryLock:
        """Take the lock, without waiting. A link in the last place is not followed.

        It works on cgroups as on any other directory, and across all namespaces
        and mounts through which the same directory is seen.

        Args:
            path: the directory.
            shared: only look whether somebody holds it; other lookers do not disturb.

        Raises:
            FileNotFoundError: there is no such directory, or another has taken its place.
            BlockingIOError: somebody holds the lock.
            OSError: it is no directory, or cannot be locked.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with ExitStack() as on_failure:
            lock = on_failure.enter_context(cls(path, os.open(path, flags)))
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(lock.descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                reason = f"cannot be locked by flock(2): {error.strerror}"
                raise OSError(error.errno, reason, str(path)) from error
            # It may have been removed, and made anew, between opening and locking.
            if not os.path.samestat(os.fstat(lock.descriptor), path.lstat()):
                raise FileNotFoundError(errno.ENOENT, "was replaced", str(path))
            on_failure.pop_all()
        return lock

    @classmethod
    def of_new(cls, make: Callable[[], Path]) -> DirectoryLock:
        """Make a directory, and take its lock.

        A reaper that comes in between takes it for a dead process's. Then another one is made.

        Args:
            make: makes an empty one, under a new name each time, and returns its path.

        Raises:
            OSError: it cannot be made or locked; none is left.
        """
        for _ in range(_ATTEMPTS - 1):
            with suppress(BlockingIOError, FileNotFoundError):
                return cls.take_new(make())
        return cls.take_new(make())

    @classmethod
    def take_new(cls, path: Path) -> DirectoryLock:
        """Take the lock of an empty directory that was just made; if that fails, none is left.

        Raises:
            OSError: as for :meth:`take`.
        """
        try:
            return cls.take(path)
        except OSError:
            with suppress(OSError):
                path.rmdir()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether this user made the directory, and nobody else may write to it."""
        found = os.fstat(self.descriptor)
        others = stat.S_IWGRP | stat.S_IWOTH
        return found.st_uid == os.geteuid() and not found.st_mode & others

    def close(self) -> None:
        """Give the lock up."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        """Return the lock itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock up."""
        self.close()
