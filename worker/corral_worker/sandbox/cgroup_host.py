"""Finds out how this host does cgroups and makes one for each sandbox."""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path

from corral_worker.sandbox import cgroup_v1, cgroup_v2
from corral_worker.sandbox.cgroup import CgroupError, SandboxCgroup, write
from corral_worker.sandbox.cgroup_v1 import CgroupV1
from corral_worker.sandbox.cgroup_v2 import CgroupV2
from corral_worker.sandbox.holdings import beacon_of, worker_of

DELEGATED = "delegated"
"""Parent that stands for the worker's own cgroup, as systemd's Delegate= hands it over."""


class CgroupHost:
    """The host's cgroup file systems, as ``/proc`` describes them.

    Args:
        parent: cgroup below which sandboxes get theirs: a path beginning with
            a slash, or ``delegated``.
        mountinfo: text of ``/proc/self/mountinfo``.
        membership: text of ``/proc/self/cgroup``.

    Raises:
        CgroupError: a controller that limits need is not there.
    """

    def __init__(self, parent: str, *, mountinfo: str, membership: str) -> None:
        self._hierarchies, self._unified = _mounts(mountinfo)
        self.version = 1 if self._hierarchies.keys() >= cgroup_v1.NEEDED else 2
        if self.version == 2 and self._unified is None:  # noqa: PLR2004 - the versions' own names
            missing = ", ".join(sorted(cgroup_v1.NEEDED - self._hierarchies.keys()))
            raise CgroupError(
                f"no cgroup version 2 is mounted, and version 1 lacks {missing}: limits would not"
                " hold. Mount cgroup2 on /sys/fs/cgroup"
            )
        own = _own_path(membership, unified=self.version != 1)
        self._own = own
        self._delegated = parent == DELEGATED
        self.parent = f"{own.rstrip('/')}/jobs" if self._delegated else parent

    @classmethod
    def of_this_host(cls, parent: str) -> CgroupHost:
        """Read ``/proc`` and return the host."""
        return cls(
            parent,
            mountinfo=Path("/proc/self/mountinfo").read_text(),
            membership=Path("/proc/self/cgroup").read_text(),
        )

    def prepare(self) -> None:
        """Make the parent and enable the controllers on the way to it.

        In a delegated cgroup the worker first moves itself into a leaf, for a
        cgroup with controllers for its children may hold no process
        (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").

        Raises:
            CgroupError: the kernel refuses.
        """
        if self._unified is None or self.version == 1:
            return
        if self._delegated:
            leaf = self._unified / self._own.lstrip("/") / "supervisor"
            leaf.mkdir(exist_ok=True)
            write(leaf / "cgroup.procs", str(os.getpid()))
        wanted = " ".join(f"+{name}" for name in cgroup_v2.NEEDED)
        top = Path(self._own if self._delegated else "/")
        steps = Path(self.parent).relative_to(top).parts
        directory = self._unified / str(top).lstrip("/")
        write(directory / "cgroup.subtree_control", wanted)
        for step in steps:
            directory /= step
            directory.mkdir(exist_ok=True)
            write(directory / "cgroup.subtree_control", wanted)

    def release(self) -> None:
        """Remove the parent if nobody uses it any more.

        Not on version 2: it holds what :meth:`prepare` has enabled, for other
        workers too.
        """
        if self.version != 1:
            return
        for mount in set(self._hierarchies.values()):
            with suppress(OSError):
                (mount / self.parent.lstrip("/")).rmdir()

    def sandbox(self, name: str) -> SandboxCgroup:
        """Return the cgroup of one sandbox, not made yet."""
        path = f"{self.parent.rstrip('/')}/{name}"
        if self._unified is not None and self.version != 1:
            return CgroupV2(self._unified, path)
        # runsc limits nothing in a version 2 beside version 1, but may leave a directory there.
        unified = {"unified": self._unified} if self._unified else {}
        return CgroupV1({**self._hierarchies, **unified}, path)

    def beacon(self, worker: str) -> Path:
        """Return the directory of the empty cgroup that stands for a worker, made or not."""
        unified = self._unified if self.version != 1 else None
        return (
            (unified or self._hierarchies["memory"]) / self.parent.lstrip("/") / beacon_of(worker)
        )

    def names(self) -> set[str]:
        """Return the names of workers and sandboxes that have a cgroup, in any hierarchy."""
        mounts = {*self._hierarchies.values(), *([self._unified] if self._unified else [])}
        found: set[str] = set()
        for mount in mounts:
            # Without the parent there are none; what is no directory is a control file.
            with suppress(OSError), os.scandir(mount / self.parent.lstrip("/")) as entries:
                found.update(entry.name for entry in entries if worker_of(entry.name))
        return found

    def at(self, parent: str) -> CgroupHost:
        """Return the same host with another parent, not ``delegated``."""
        other = copy.copy(self)
        other.parent = parent
        other._delegated = False  # noqa: SLF001
        return other


def _mounts(mountinfo: str) -> tuple[dict[str, Path], Path | None]:
    hierarchies: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4])
        # Not split by runs of spaces: the source of a mount may be an empty string.
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            unified = mount
        elif kind == "cgroup":
            for option in options.split(","):
                controller = option.removeprefix("name=")
                if controller not in {"rw", "ro"}:
                    hierarchies.setdefault(controller, mount)
    return hierarchies, unified


def _own_path(membership: str, *, unified: bool) -> str:
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if (controllers == "") if unified else ("memory" in controllers.split(",")):
            return path
    return "/"
