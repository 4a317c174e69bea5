"""Looks what the host has left."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

from corral_worker.admission.decision import HostSample
from corral_worker.admission.tasks import TaskRoom

_MANY = (errno.EMFILE, errno.ENFILE)


class HostSampler:
    """Reads what another job would need of the host.

    Args:
        directory: where the worker's sandboxes have their files.
        runsc_is_same: whether runsc is the one that the worker has started with.
        sandboxes_start: whether a sandbox could be started when that was tried last.
        proc: the ``proc`` file system.
    """

    def __init__(
        self,
        directory: Path,
        *,
        runsc_is_same: Callable[[], bool],
        sandboxes_start: Callable[[], bool],
        proc: Path = Path("/proc"),
    ) -> None:
        self._directory = directory
        self._runsc_is_same = runsc_is_same
        self._sandboxes_start = sandboxes_start
        self._proc = proc
        self._tasks = TaskRoom(proc)

    def sample(self) -> HostSample:
        """Return what there is. Blocks for about a millisecond: call it in a thread."""
        disk_bytes, inodes = self._disk()
        return HostSample(
            runsc=self._runsc_is_same(),
            sandboxes=self._sandboxes_start(),
            memory_bytes=self._memory(),
            disk_bytes=disk_bytes,
            inodes=inodes,
            open_files=self._open_files(),
            tasks=self._tasks.left(),
            cpu_pressure=self._pressure("cpu", "some"),
            memory_pressure=self._pressure("memory", "full"),
            io_pressure=self._pressure("io", "full"),
        )

    def _disk(self) -> tuple[int, int | None]:
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return 0, None  # it is gone: nothing can be written there
        # Some file systems count no inodes, and say that there are none at all.
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None

    def _memory(self) -> int | None:
        for line in self._lines("meminfo"):
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
        return None

    def _open_files(self) -> int | None:
        try:
            used = len(os.listdir(self._proc / "self" / "fd"))  # noqa: PTH208 - names are enough
            allocated, _, most = (self._proc / "sys" / "fs" / "file-nr").read_text().split()
        except OSError as error:
            return 0 if error.errno in _MANY else None
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(soft - used, int(most) - int(allocated))

    def _pressure(self, what: str, who: str) -> float | None:
        for line in self._lines(f"pressure/{what}"):
            kind, *averages = line.split()
            if kind == who:
                fields = dict(field.split("=") for field in averages)
                return float(fields["avg10"])
        return None

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text().splitlines()
        except OSError:
            return []  # kernels can be without it
