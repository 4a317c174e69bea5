"""How many more tasks, which are processes and threads, this process and its host can have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNIFIED = ""


class TaskRoom:
    """Looks what the kernel, and the cgroups that this process is in, leave of tasks.

    Args:
        proc: the ``proc`` file system.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._mounts = _mounts(proc)

    def left(self) -> int | None:
        """Return how many; None where nothing tells. Blocks for less than a millisecond.

        What else limits tasks is tried: 0 if no thread can be started.
        """
        if not _can_start_thread():
            return 0
        return min((max(0, number) for number in self._numbers()), default=None)

    def _numbers(self) -> Iterator[int]:
        # What is not there is not known: each alone.
        with suppress(OSError, ValueError, IndexError):
            kernel = self._proc / "sys" / "kernel"
            most = min(int((kernel / name).read_text()) for name in ("threads-max", "pid_max"))
            _, _, now = (self._proc / "loadavg").read_text().split()[3].partition("/")
            yield most - int(now)
        for directory in self._cgroups():
            with suppress(OSError, ValueError):
                # "max" is no number, and no limit.
                most = int((directory / "pids.max").read_text())
                yield most - int((directory / "pids.current").read_text())

    def _cgroups(self) -> Iterator[Path]:
        """Yield the cgroup of this process and those above it, as far as they can be seen."""
        with suppress(OSError):
            for line in (self._proc / "self" / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                for controller in {"pids", _UNIFIED} & set(controllers.split(",")):
                    if mount := self._mounts.get(controller):
                        own = mount / path.lstrip("/")
                        yield own
                        yield from (above for above in own.parents if above.is_relative_to(mount))


def _mounts(proc: Path) -> dict[str, Path]:
    """Return where the hierarchies are that can limit tasks."""
    found: dict[str, Path] = {}
    with suppress(OSError):
        for line in (proc / "self" / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind == "cgroup2":
                found[_UNIFIED] = Path(before.split()[4])
            elif kind == "cgroup" and "pids" in options.split(","):
                found["pids"] = Path(before.split()[4])
    return found


def _can_start_thread() -> bool:
    thread = threading.Thread(target=int, name="corral trial")
    try:
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True
