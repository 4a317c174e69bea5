"""Looks at the machine itself: kernel, rights, processors, memory, disk, descriptors, clock."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import msgspec

from corral_worker.admission.tasks import TaskRoom
from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.sandbox.bundle import host_tasks
from corral_worker.settings import Settings

_GIB = 1024**3
_MIB = 1024**2

# os.pidfd_open, by which the worker waits for its children.
_OLDEST_KERNEL = (5, 3)
# cgroup.kill came with 5.14, memory.peak with 5.19, pids.peak with 6.1.
_GOOD_KERNEL = (6, 1)
_MACHINES = frozenset({"x86_64", "aarch64"})
# From linux/capability.h: what making namespaces, mounts, cgroups and users takes.
_CAPABILITIES = MappingProxyType(
    {
        "CAP_CHOWN": 0,
        "CAP_DAC_OVERRIDE": 1,
        "CAP_KILL": 5,
        "CAP_SETGID": 6,
        "CAP_SETUID": 7,
        "CAP_SETPCAP": 8,
        "CAP_SYS_CHROOT": 18,
        "CAP_SYS_PTRACE": 19,
        "CAP_SYS_ADMIN": 21,
    }
)
_SLOTS_PER_CPU = 4
_FILES_PER_SLOT = 64
_FILES_OF_WORKER = 256
_LEAST_FREE_BYTES, _LITTLE_FREE_BYTES = 64 * _MIB, _GIB
_LEAST_FREE_INODES, _LITTLE_FREE_INODES = 1_000, 20_000
_TIME_ERROR = 5
"""What adjtimex(2) returns if the clock is not synchronised."""
_TIMEX_BYTES = 512
"""More than any platform's ``struct timex``."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a file system has left."""

    directory: Path
    free_bytes: int
    inodes: int
    """0 where the file system makes them as it needs them."""
    free_inodes: int
    read_only: bool


def look_at_kernel() -> Iterator[Finding]:
    """Say whether this kernel has what a worker uses."""
    yield kernel(platform.release(), platform.machine())


def kernel(release: str, machine: str) -> Finding:
    """Judge a kernel by its release and machine."""
    name, seen = "host.kernel", f"Linux {release}, {machine}"
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if machine not in _MACHINES:
        return fail(name, seen, "Use a machine with an x86_64 or arm64 processor: gVisor's only.")
    if version < _OLDEST_KERNEL:
        return fail(name, seen, "Boot Linux 6.1 or later; 5.3 is the oldest that could do.")
    if version < _GOOD_KERNEL:
        return warn(
            name,
            f"{seen}: it does not count every peak (memory from 5.19, tasks from 6.1)",
            "Boot Linux 6.1 or later.",
        )
    return ok(name, seen)


def look_at_rights() -> Iterator[Finding]:
    """Say whether this process may do what a worker has to."""
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    yield rights(os.geteuid(), int(effective[1], 16) if effective else 0)


def rights(uid: int, capabilities: int) -> Finding:
    """Judge a user by its number and its effective capabilities."""
    name = "host.rights"
    if uid != 0:
        return fail(name, f"this is user {uid}, not root", "Run the worker, and this, as root.")
    missing = [key for key, bit in _CAPABILITIES.items() if not capabilities >> bit & 1]
    if missing:
        return fail(
            name,
            f"root, but without {', '.join(missing)}",
            "Give the worker's container or service these capabilities.",
        )
    return ok(name, "root, with the capabilities that sandboxes take")


def look_at_processors(settings: Settings) -> Iterator[Finding]:
    """Say whether the slots fit the processors."""
    yield processors(len(os.sched_getaffinity(0)), settings)


def processors(count: int, settings: Settings) -> Finding:
    """Judge how many processors there are for so many slots."""
    name, seen = "host.cpus", f"{count} for {settings.slots} slots"
    if settings.slots > _SLOTS_PER_CPU * count:
        return warn(name, seen, f"Set slots to {_SLOTS_PER_CPU * count} or fewer: jobs would wait.")
    return ok(name, seen)


def look_at_memory(settings: Settings) -> Iterator[Finding]:
    """Say whether there is memory for the slots."""
    fields = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (
            line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines()
        )
    }
    yield memory(fields["MemTotal"], fields["MemAvailable"], settings)


def memory(total: int, available: int, settings: Settings) -> Finding:
    """Judge the host's memory in bytes against what jobs get that ask for none."""
    name, each = "host.memory", settings.policy.defaults.memory_bytes
    seen = f"{available // _MIB} MiB available of {total // _MIB} MiB, {each // _MIB} MiB a job"
    if available < each:
        return fail(name, seen, "Free memory, or lower policy.defaults.memory_bytes.")
    if settings.slots * each > total:
        return warn(
            name,
            f"{seen}, {settings.slots} slots",
            f"Set slots to {max(1, total // each)}, or lower policy.defaults.memory_bytes.",
        )
    return ok(name, seen)


def look_at_disk(settings: Settings) -> Iterator[Finding]:
    """Say whether the directories the worker writes to have room."""
    places = {"host.disk": settings.state_dir, "host.disk.images": settings.images}
    seen: set[int] = set()
    for name, place in places.items():
        directory = next(path for path in (place, *place.parents) if path.exists())
        device = directory.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        found = os.statvfs(directory)
        yield disk(
            name,
            Room(
                directory=directory,
                free_bytes=found.f_bavail * found.f_frsize,
                inodes=found.f_files,
                free_inodes=found.f_favail,
                read_only=bool(found.f_flag & os.ST_RDONLY),
            ),
        )


def disk(name: str, room: Room) -> Finding:
    """Judge what a file system has left."""
    inodes = f"{room.free_inodes} inodes" if room.inodes else "inodes as needed"
    seen = f"{room.directory}: {room.free_bytes // _MIB} MiB and {inodes} free"
    if room.read_only:
        return fail(name, f"{room.directory} is mounted read-only", "Mount it for writing.")
    if room.free_bytes < _LEAST_FREE_BYTES:
        return fail(name, seen, f"Free at least {_GIB // _MIB} MiB there.")
    if room.inodes and room.free_inodes < _LEAST_FREE_INODES:
        return fail(name, seen, f"Delete files there: {_LITTLE_FREE_INODES} inodes should be free.")
    if room.free_bytes < _LITTLE_FREE_BYTES:
        return warn(name, seen, f"Free at least {_GIB // _MIB} MiB there.")
    if room.inodes and room.free_inodes < _LITTLE_FREE_INODES:
        return warn(name, seen, f"Delete files there: {_LITTLE_FREE_INODES} inodes should be free.")
    return ok(name, seen)


def look_at_descriptors(settings: Settings) -> Iterator[Finding]:
    """Say whether the worker may open enough files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield descriptors(hard, settings.slots)
    used, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
    yield open_files(used, most)


def descriptors(hard: int, slots: int) -> Finding:
    """Judge the most descriptors that this process may have."""
    name, needed = "host.descriptors", _FILES_OF_WORKER + _FILES_PER_SLOT * slots
    seen = f"up to {hard} for {slots} slots"
    if hard != resource.RLIM_INFINITY and hard < needed:
        return fail(name, seen, f"Raise the hard limit (LimitNOFILE=, ulimit -Hn) to {needed}.")
    return ok(name, "no limit" if hard == resource.RLIM_INFINITY else seen)


def open_files(used: int, most: int) -> Finding:
    """Judge how many files the whole host has open."""
    name, seen = "host.open_files", f"{used} open of {most} on this host"
    if used > 0.8 * most:
        return warn(name, seen, "Raise the sysctl fs.file-max.")
    return ok(name, seen)


def look_at_tasks(settings: Settings) -> Iterator[Finding]:
    """Say whether there can be as many tasks as jobs take, and enough more at this time."""
    limits = [
        int(Path("/proc/sys/kernel", file).read_text()) for file in ("pid_max", "threads-max")
    ]
    yield tasks(min(limits), settings)
    yield tasks_left(TaskRoom().left(), settings.admission.tasks)


def tasks(most: int, settings: Settings) -> Finding:
    """Judge how many tasks this host can have against what jobs get that ask for none."""
    name, needed = "host.tasks", settings.slots * host_tasks(settings.policy.defaults)
    seen = f"up to {most} on this host, up to {needed} for {settings.slots} slots"
    if needed > most // 2:
        return warn(name, seen, "Raise the sysctls kernel.pid_max and kernel.threads-max.")
    return ok(name, seen)


def tasks_left(left: int | None, mark: int) -> Finding:
    """Judge how many more processes and threads this process could start."""
    name = "host.tasks_left"
    if left is None:
        return ok(name, "the kernel does not tell")
    seen = f"{left} more can be started here"
    if left < mark:
        return warn(
            name,
            f"{seen}: a worker takes no jobs with less than {mark}",
            "Raise TasksMax= of the unit, pids.max of the cgroup, or ulimit -u.",
        )
    return ok(name, seen)


def look_at_pressure() -> Iterator[Finding]:
    """Say whether the kernel tells how long tasks wait."""
    averages: list[str] = []
    for kind in ("cpu", "memory", "io"):
        try:
            some = Path("/proc/pressure", kind).read_text().split()[1]
        except OSError as error:
            yield warn(
                "host.pressure",
                f"/proc/pressure/{kind}: {error.strerror}: a worker cannot see that the host is"
                " overloaded",
                "Boot a kernel with CONFIG_PSI, and with psi=1 on its command line.",
            )
            return
        averages.append(f"{kind} {some.partition('=')[2]} %")
    yield ok("host.pressure", f"waiting over the last 10 s: {', '.join(averages)}")


def look_at_clock() -> Iterator[Finding]:
    """Say whether something keeps the clock right."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    yield clock(state)


def clock(state: int) -> Finding:
    """Judge what adjtimex(2) says."""
    if state == _TIME_ERROR:
        return warn(
            "host.clock",
            "the kernel says that nothing synchronises it",
            "Run chrony or systemd-timesyncd, here or on the machine that this one is a guest of.",
        )
    return ok("host.clock", "synchronised")
