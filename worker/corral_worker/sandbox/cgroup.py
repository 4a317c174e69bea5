"""The cgroup of one sandbox: its limits, its counters, its end.

runsc removes the cgroups it makes, and the counters with them. So corral makes
one itself before runsc starts: see ``docs/adr/0001-cgroup-made-before-runsc.md``.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from corral import HostLimits

SWAPS = Path("/proc/swaps")
"""The swap areas in use: a line each, below a heading."""

# The second one is what an open control file gives, the third one that of a process.
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH})
_MAKE_ATTEMPTS = 5
_LINKS_OF_A_LEAF = 2
_CHUNK = 4096

File = str | Path
"""A control file or its directory. Text where a job has many: to make a path takes as long as to
read the file."""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel counted for a sandbox."""

    cpu_s: float
    peak_memory_bytes: int
    peak_tasks: int | None
    """None where the kernel does not keep it (before Linux 6.1)."""
    oom_kills: int
    memory_bytes: int = 0
    """What it has now; never less than what it really uses."""


class CgroupError(Exception):
    """Raised if a cgroup cannot be made, or a limit does not hold after it was set."""


class SandboxCgroup(Protocol):
    """The cgroup of one sandbox.

    All methods touch only the cgroup file system and block for about a
    millisecond: call them in a thread.
    """

    @property
    def runsc_path(self) -> str:
        """What ``linux.cgroupsPath`` is to say."""

    def create(self, limits: HostLimits) -> HostLimits:
        """Make the cgroup, set the limits, and return them as read back.

        An infinite number of ``cpus`` is no limit of the processor.

        Raises:
            CgroupError: it could not be made, or a limit would not hold.
        """

    def limit(self, limits: HostLimits) -> HostLimits:
        """Set the limits anew, and return them as read back.

        Raises:
            CgroupError: a limit would not hold.
        """

    def yield_processor(self) -> None:
        """Leave the processor to all others who want it, until :meth:`begin`.

        Raises:
            CgroupError: the kernel refuses.
        """

    def begin(self) -> None:
        """Take the share of the processor that every job has, and forget the peak of memory.

        On version 2 the peak stays: Linux resets it for one open file only.

        Raises:
            CgroupError: the kernel refuses.
        """

    def counters(self) -> Counters:
        """Return the counters; zeros once the cgroup is gone."""

    def processes(self) -> set[int]:
        """Return the pids in the cgroup and below."""

    def kill(self) -> None:
        """Send SIGKILL to every process in the cgroup and below."""

    def remove(self) -> None:
        """Remove the cgroup and all below; gone already is no error.

        Raises:
            CgroupError: it is not empty.
        """


def make(directory: File) -> None:
    """Make a cgroup, and those above it.

    Raises:
        CgroupError: it is there already, or the kernel refuses.
    """
    try:
        for _ in range(_MAKE_ATTEMPTS):
            with suppress(FileNotFoundError):
                os.mkdir(directory)  # noqa: PTH102 - as for control files
                return
            # Another worker may remove it, empty as it is, before it is used.
            Path(directory).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CgroupError(
            f"cgroup {directory} cannot be made: {error.strerror}. The worker must run as"
            " root, or in a delegated cgroup"
        ) from error
    raise CgroupError(f"cgroup {directory} cannot be made: its parent vanishes")


def pids_below(directory: File) -> set[int]:
    """Return the pids in a cgroup directory and below; none once it is gone.

    Raises:
        OSError: the host cannot say, for example for want of a file descriptor.
    """
    # The kernel counts a directory's own directories as links to it: mostly there are none.
    try:
        if os.stat(directory).st_nlink <= _LINKS_OF_A_LEAF:  # noqa: PTH116 - as for control files
            return set(map(int, read(f"{directory}/cgroup.procs").split()))
    except FileNotFoundError:
        return set()
    pids: set[int] = set()
    for parent, _, files in os.walk(directory, onerror=_gone_only):
        if "cgroup.procs" in files:
            pids.update(map(int, read(Path(parent) / "cgroup.procs").split()))
    return pids


def remove_below(directory: File) -> None:
    """Remove a cgroup directory and all below, deepest first; gone already is no error.

    Raises:
        CgroupError: one is not empty.
    """
    try:
        os.rmdir(directory)  # noqa: PTH106 - as for control files
    except FileNotFoundError:
        return
    except OSError:
        _remove_walking(directory)


def _remove_walking(directory: File) -> None:
    for parent, _, _ in os.walk(directory, topdown=False, onerror=_gone_only):
        try:
            Path(parent).rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CgroupError(f"cgroup {parent} cannot be removed: {error.strerror}") from error


def read(file: File) -> str:
    """Return a control file's text; nothing once the cgroup is gone.

    Raises:
        OSError: the host cannot say, for example for want of a file descriptor:
            a counter that was not read is not zero.
    """
    # Without file objects, which cost as much as the kernel's part: each job has some thirty.
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _gone_only(error)
        return ""
    try:
        text = b""
        while part := os.read(descriptor, _CHUNK):
            text += part
        return text.decode()
    except OSError as error:
        _gone_only(error)
        return ""
    finally:
        os.close(descriptor)


def _gone_only(error: OSError) -> None:
    if error.errno not in _GONE:
        raise error


def is_there(file: File) -> bool:
    """Return whether this kernel has a control file."""
    return os.path.exists(file)  # noqa: PTH110 - as for all of them: no path is made for it


def read_number(file: File) -> int:
    """Return a control file's number; 0 once the cgroup is gone, the largest for ``max``."""
    text = read(file).strip()
    return sys.maxsize if text == "max" else int(text or 0)


def read_field(file: File, name: str) -> int:
    """Return one number of a file of ``name number`` lines; 0 if it is not there."""
    for line in read(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def write(file: File, value: str) -> None:
    """Write a control file.

    Raises:
        CgroupError: the kernel refuses the value, or there is no such file.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CgroupError(
            f"{file} does not take {value!r}: {error.strerror}. Is the controller enabled for"
            " corral's cgroup?"
        ) from error


def check_no_swap() -> None:
    """Return if the host has no swap.

    Raises:
        CgroupError: it has, and its kernel, asked by the caller, keeps no
            account of it: memory would be limited, what is swapped out not.
    """
    areas = read(SWAPS).splitlines()[1:]
    if areas:
        raise CgroupError(
            f"this kernel does not limit swap by cgroup, and {len(areas)} swap area(s) are in"
            " use: boot with swapaccount=1, or run swapoff -a"
        )


def check_held(wanted: HostLimits, held: HostLimits) -> HostLimits:
    """Return what was read back.

    Raises:
        CgroupError: it allows more than was wanted.
    """
    for name in HostLimits.__struct_fields__:
        ceiling, value = getattr(wanted, name), getattr(held, name)
        if value is None or ceiling is None or math.isclose(value, ceiling):
            continue  # the kernel keeps whole microseconds: close is as asked
        if value > ceiling:
            raise CgroupError(f"the limit {name} was set to {ceiling} but reads back as {value}")
    return held
