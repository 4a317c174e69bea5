"""What a caller asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from corral.errors import ErrInvalidJob

MAX_ARGUMENT_BYTES = 1024 * 1024
"""Most bytes ``argv`` and ``env`` may hold together."""
MAX_PROGRAM_BYTES = 4095
"""Most bytes the program's name may hold: Linux takes no longer path (PATH_MAX)."""
MAX_STDIN_BYTES = 16 * 1024 * 1024
"""Most bytes ``stdin`` may hold."""

LOWEST: Mapping[str, float] = MappingProxyType(
    {"cpus": 0.05, "memory_bytes": 16 * 1024 * 1024, "open_files": 16}
)
"""Limits below which no sandbox starts."""

_MAX_ID = 2**31 - 1
_NAMED_IDS: Mapping[str, int] = MappingProxyType({"root": 0, "nobody": 65534, "nogroup": 65534})


def _check_finite(value: float | None, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ErrInvalidJob(f"{value} is not finite: name a number, or leave it out", path=path)


class Limits(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Resource limits of a job; what is left out gets the policy's default.

    Zero asks for "unlimited", which a policy with a ceiling refuses.
    """

    wall_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None
    """Seconds from the program's start until it is killed."""
    cpu_time_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None
    """Seconds of processor time, over all cores, until it is killed."""
    cpus: Annotated[float, Meta(ge=0, le=1024)] | None = None
    """Processor share: 0.5 is half a core."""
    memory_bytes: Annotated[int, Meta(ge=0, le=2**40)] | None = None
    """Memory of the sandbox, gVisor's own 10 to 15 MB and tmpfs files included."""
    pids: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    """Processes of the job at one time."""
    disk_bytes: Annotated[int, Meta(ge=0, le=2**40)] | None = None
    """Files of all writable directories together; one directory alone is full at that size.

    They live in memory and count there too.
    """
    file_bytes: Annotated[int, Meta(ge=0, le=2**40)] | None = None
    """Size of one file (RLIMIT_FSIZE)."""
    output_bytes: Annotated[int, Meta(ge=0, le=64 * 1024 * 1024)] | None = None
    """Bytes kept of each output stream; the rest is counted, not kept."""
    output_kill_bytes: Annotated[int, Meta(ge=0, le=2**40)] | None = None
    """Bytes of both output streams together until it is killed."""
    open_files: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    """Open file descriptors of one process (RLIMIT_NOFILE)."""

    def __post_init__(self) -> None:
        """Refuse numbers that JSON cannot carry, and limits that no sandbox starts with."""
        for name in self.__struct_fields__:
            value, path = getattr(self, name), f"$.limits.{name}"
            _check_finite(value, path)
            if isinstance(value, int | float) and 0 < value < LOWEST.get(name, 0):
                raise ErrInvalidJob(
                    f"{value} is too little for a sandbox to start: at least {LOWEST[name]} is"
                    " needed",
                    path=path,
                )


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host directory asked for. No policy grants one: it can only be refused by name."""

    source: Annotated[str, Meta(max_length=4096)]
    target: Annotated[str, Meta(max_length=4096)]


class Job(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One program to run once in a sandbox of its own.

    Raises :class:`corral.ErrInvalidJob` from its constructor for values that
    no program could be started with. Types and ranges are checked when a job
    is encoded or decoded, for :mod:`msgspec` does not check a constructor's.
    """

    argv: Annotated[tuple[str, ...], Meta(min_length=1, max_length=65_536)]
    """The program and its arguments. Never given to a shell."""
    image: Annotated[str, Meta(min_length=1, max_length=128)] = "python"
    """Name of an image the workers have, or its ``sha256:`` digest."""
    env: Annotated[dict[str, str], Meta(max_length=4096)] = {}
    """The job's environment; of the worker's nothing is inherited."""
    cwd: Annotated[str, Meta(min_length=1, max_length=4096, pattern="^/")] = "/workspace"
    stdin: bytes = b""
    limits: Limits = Limits()
    network: Annotated[str, Meta(max_length=64)] = "none"
    user: Annotated[str, Meta(max_length=64)] = "nobody"
    """``nobody``, or numbers: ``UID`` or ``UID:GID``. Never root."""
    start_within_s: Annotated[float, Meta(gt=0, le=2_592_000)] | None = None
    """Seconds after its submission in which the job must start, or it expires."""
    attempts: Annotated[int, Meta(ge=1, le=10)] = 1
    """How often the program may be started in all, if workers are lost."""
    labels: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]],
        Meta(max_length=32),
    ] = {}
    """The caller's own notes; they come back in the result and in the worker's log."""

    privileged: bool = False
    """Always refused; here so that the refusal can name it."""
    read_only_root: bool = True
    """Only true is permitted; ``/workspace``, ``/tmp``, ``/var/tmp`` and ``/home`` are writable."""
    seccomp: Annotated[str, Meta(max_length=64)] = "default"
    """Only ``default`` is permitted: gVisor's own filters."""
    capabilities: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Always refused when not empty."""
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=64)] = ()
    """Always refused when not empty."""
    host_settings: Annotated[
        dict[Annotated[str, Meta(max_length=64)], str], Meta(max_length=64)
    ] = {}
    """Settings of the host found in the job, such as ``platform``: always refused."""

    def __post_init__(self) -> None:
        """Refuse what no program could be started with."""
        for index, argument in enumerate(self.argv):
            if "\0" in argument:
                raise ErrInvalidJob(
                    "an argument holds a NUL byte, which no program can receive",
                    path=f"$.argv[{index}]",
                )
        if self.argv and not self.argv[0]:
            raise ErrInvalidJob("the program's name is empty", path="$.argv[0]")
        if any("\0" in value for value in self.env.values()):
            raise ErrInvalidJob("a value holds a NUL byte", path="$.env")
        size = sum(map(_length, (*self.argv, *self.env, *self.env.values())))
        if size > MAX_ARGUMENT_BYTES:
            raise ErrInvalidJob(
                f"argv and env hold {size} bytes, at most {MAX_ARGUMENT_BYTES} are"
                " accepted: send large data as stdin",
                path="$.argv",
            )
        if self.argv and (length := _length(self.argv[0])) > MAX_PROGRAM_BYTES:
            raise ErrInvalidJob(
                f"the program's name holds {length} bytes, of which no path may hold more than"
                f" {MAX_PROGRAM_BYTES}",
                path="$.argv[0]",
            )
        if len(self.stdin) > MAX_STDIN_BYTES:
            raise ErrInvalidJob(
                f"stdin holds {len(self.stdin)} bytes, at most {MAX_STDIN_BYTES} are accepted",
                path="$.stdin",
            )
        if "\0" in self.cwd or ".." in self.cwd.split("/"):
            raise ErrInvalidJob("the directory holds '..' or a NUL byte", path="$.cwd")
        _check_finite(self.start_within_s, "$.start_within_s")
        self.ids()

    def ids(self) -> tuple[int, int]:
        """Return the numeric user and group.

        Raises:
            ErrInvalidJob: ``user`` is neither a known name nor a number.
        """
        user, colon, group = self.user.partition(":")
        uid = _numeric(user or "nobody")
        return uid, _numeric(group) if colon else (uid if user.isdigit() else _NAMED_IDS["nobody"])


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _numeric(name: str) -> int:
    if name in _NAMED_IDS:
        return _NAMED_IDS[name]
    if name.isascii() and name.isdigit() and len(name) <= len(str(_MAX_ID)):
        number = int(name)
        if number <= _MAX_ID:
            return number
    raise ErrInvalidJob(
        f"{name[:64]!r} is no user or group corral knows: use nobody, UID or UID:GID",
        path="$.user",
    )
