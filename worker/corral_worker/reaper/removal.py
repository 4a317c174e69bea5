"""The removal of one leftover."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

from corral_worker.process.identity import ProcessIdentity
from corral_worker.reaper.trace import Trace, mounts_of, names_in
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost

_DIES_WITHIN_S = 1.0
"""Seconds that a process which was killed, or its cgroup, may take to be gone."""
_PAUSE_S = 0.005
_UMOUNT_NOFOLLOW = 8


class Removal:
    """Removes traces of one worker, each only as what it was when it was found.

    Everything here blocks: call it in a thread.

    Args:
        cgroups: this host.
        directory: the worker's directory, if it has one: path and descriptor.
    """

    def __init__(self, cgroups: CgroupHost, directory: tuple[Path, int] | None) -> None:
        self._cgroups = cgroups
        self._directory = directory

    def remove(self, trace: Trace) -> None:
        """Remove it; gone already is no error.

        Raises:
            CgroupError: processes in the cgroup do not die.
            OSError: it cannot be removed.
        """
        match trace.kind:
            case "process":
                if trace.process is not None:
                    _kill(trace.process)
            case "cgroup":
                self._remove_cgroup(trace)
            case "mount":
                _unmount(trace.name)
            case "network_namespace":
                # Not mounted, it is just a file.
                with suppress(_NotMountedError):
                    _unmount(trace.name)
                Path(trace.name).unlink(missing_ok=True)
            case "state_file" | "bundle":
                self._remove_file(trace)
            case "directory":
                self._remove_directory(trace)

    def _remove_cgroup(self, trace: Trace) -> None:
        parent, _, name = trace.name.rpartition("/")
        cgroup = self._cgroups.at(parent).sandbox(name)
        gives_up = time.monotonic() + _DIES_WITHIN_S
        while True:
            cgroup.kill()
            try:
                cgroup.remove()
            except CgroupError:
                if time.monotonic() > gives_up:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

    def _remove_file(self, trace: Trace) -> None:
        directory = self._without_mounts(trace)
        part, _, name = trace.name.partition("/")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(part, flags, dir_fd=directory)
        try:
            _remove_entry(name, descriptor)
        finally:
            os.close(descriptor)

    def _remove_directory(self, trace: Trace) -> None:
        directory = self._without_mounts(trace)
        for name in names_in(directory):
            _remove_entry(name, directory)
        Path(trace.name).rmdir()

    def _without_mounts(self, trace: Trace) -> int:
        """Return the worker's directory, in which nothing is mounted: that is another's."""
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), trace.name)
        path, descriptor = self._directory
        if mount := next(mounts_of(trace.worker, path), None):
            raise OSError(errno.EBUSY, f"something is mounted on {mount.name}", str(path))
        return descriptor


class _NotMountedError(OSError):
    """Nothing is mounted there."""


def _kill(process: ProcessIdentity) -> None:
    process.kill()
    gives_up = time.monotonic() + _DIES_WITHIN_S
    while process.is_alive():
        if time.monotonic() > gives_up:
            raise OSError(errno.EBUSY, "does not die", f"process {process.pid}")
        time.sleep(_PAUSE_S)


def _unmount(point: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Neither by force nor lazily: what is in use is somebody's.
    if libc.umount2(os.fsencode(point), _UMOUNT_NOFOLLOW) != 0:
        code = ctypes.get_errno()
        kind = _NotMountedError if code in {errno.EINVAL, errno.ENOENT} else OSError
        raise kind(code, os.strerror(code), point)


def _remove_entry(name: str, directory: int) -> None:
    """Remove a file, or a directory and all below; links are removed, not followed."""
    with suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
