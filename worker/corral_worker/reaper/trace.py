"""What a worker's sandboxes can leave on a host, found by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import msgspec

from corral_worker.process.identity import ProcessIdentity
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import is_sandbox, sandbox_in, worker_of

Kind = Literal[
    "process", "cgroup", "mount", "network_namespace", "state_file", "bundle", "directory"
]

NETWORK_NAMESPACES = Path("/run/netns")
"""Where ip(8) keeps network namespaces by name."""
STATE_FILES = "r"
BUNDLES = "b"
"""The parts of a worker's directory."""

_PROC = Path("/proc")
_ROOT_FLAG = re.compile(r"--root=(?:/.*)?/w-([0-9a-f]{8})/r\Z")
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One thing on the host that is named after a worker."""

    kind: Kind
    worker: str
    """The worker's mark."""
    name: str
    """A path: a cgroup's in the cgroup tree, a file's in its worker's directory."""
    sandbox: str | None = None
    """The sandbox it belongs to, if it is named after one."""
    process: ProcessIdentity | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each kind."""

    process: int = 0
    cgroup: int = 0
    mount: int = 0
    network_namespace: int = 0
    state_file: int = 0
    bundle: int = 0
    directory: int = 0

    @classmethod
    def of(cls, *kinds: Kind) -> Self:
        """Count kinds."""
        return cls(**{kind: kinds.count(kind) for kind in kinds})

    @property
    def total(self) -> int:
        """All together."""
        return sum(msgspec.structs.astuple(self))

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        sums = (one + another for one, another in pairs)
        return Counts(**dict(zip(self.__struct_fields__, sums, strict=True)))


def processes() -> Iterator[Trace]:
    """Yield every runsc, sandbox and gofer that works with the state of some worker."""
    for number in filter(str.isdigit, names_in(_PROC)):
        words = _command(number)
        flag = next(filter(None, map(_ROOT_FLAG.match, words)), None)
        if flag is None:
            continue
        found = ProcessIdentity.of(int(number))
        # If the words are still the same, the number did not go from one process to another.
        if found and _command(number) == words:
            worker = flag[1]
            ours = (word for word in words if is_sandbox(word) and worker_of(word) == worker)
            yield _process(found, worker, next(ours, None))


def processes_of(cgroup: Trace, cgroups: CgroupHost) -> Iterator[Trace]:
    """Yield the processes in a sandbox's cgroup."""
    group = cgroups.sandbox(cgroup.name.rpartition("/")[2])
    # Whatever has one of these numbers afterwards, and is in the cgroup still, belongs there.
    found = [ProcessIdentity.of(pid) for pid in group.processes() if pid]
    members = group.processes()
    for process in found:
        if process and process.pid in members:
            yield _process(process, cgroup.worker, cgroup.sandbox)


def cgroups_of(worker: str, cgroups: CgroupHost) -> Iterator[Trace]:
    """Yield the cgroups of a worker's sandboxes, each once for all hierarchies."""
    for name in sorted(cgroups.names()):
        if worker_of(name) == worker and is_sandbox(name):
            path = f"{cgroups.parent.rstrip('/')}/{name}"
            yield Trace(kind="cgroup", worker=worker, name=path, sandbox=name)


def mounts_of(worker: str, directory: Path) -> Iterator[Trace]:
    """Yield what is mounted in a worker's directory, what is mounted last first."""
    below = f"{os.path.realpath(directory.parent)}/{directory.name}/"
    for point in reversed(_mount_points()):
        if f"{point}/".startswith(below):
            yield Trace(kind="mount", worker=worker, name=point, sandbox=sandbox_in(point))


def network_namespaces_of(worker: str, directory: Path = NETWORK_NAMESPACES) -> Iterator[Trace]:
    """Yield the network namespaces that are named after a worker's sandboxes."""
    for name in sorted(names_in(directory)):
        if worker_of(name) == worker:
            sandbox = sandbox_in(name)
            yield Trace(
                kind="network_namespace",
                worker=worker,
                name=str(directory / name),
                sandbox=sandbox,
            )


def files_of(worker: str, directory: Path | int) -> Iterator[Trace]:
    """Yield runsc's files and the bundles in a worker's directory."""
    parts: tuple[tuple[Kind, str], ...] = (("state_file", STATE_FILES), ("bundle", BUNDLES))
    for kind, part in parts:
        for name in sorted(_entries_below(directory, part)):
            yield Trace(kind=kind, worker=worker, name=f"{part}/{name}", sandbox=sandbox_in(name))


def _command(number: str) -> list[str]:
    with suppress(OSError):
        return os.fsdecode((_PROC / number / "cmdline").read_bytes()).split("\0")
    return []


def _process(process: ProcessIdentity, worker: str, sandbox: str | None) -> Trace:
    name = str(_PROC / str(process.pid))
    return Trace(kind="process", worker=worker, name=name, sandbox=sandbox, process=process)


def names_in(directory: Path | int) -> list[str]:
    """Return the names in a directory, or in the one of a descriptor; none if it is gone."""
    with suppress(OSError), os.scandir(directory) as entries:
        return [entry.name for entry in entries]
    return []


def _entries_below(directory: Path | int, part: str) -> list[str]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if isinstance(directory, Path):
            descriptor = os.open(directory / part, flags)
        else:
            descriptor = os.open(part, flags, dir_fd=directory)
    except OSError:
        return []
    try:
        return names_in(descriptor)
    finally:
        os.close(descriptor)


def _mount_points() -> list[str]:
    lines = (_PROC / "self/mountinfo").read_bytes().splitlines()
    return [
        os.fsdecode(_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4]))
        for line in lines
    ]
