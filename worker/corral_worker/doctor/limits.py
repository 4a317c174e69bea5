"""Tries on a cgroup of its own whether this host holds what jobs are limited by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corral import HostLimits
from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.reaper.beacon import Beacon
from corral_worker.sandbox.cgroup import CgroupError, Counters
from corral_worker.sandbox.cgroup_host import DELEGATED, CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.settings import Settings

_TRIED = HostLimits(memory_bytes=64 * 1024**2, swap_bytes=0, cpus=0.5, tasks=64)
_HIERARCHY = "Mount cgroup2 on /sys/fs/cgroup with the controllers cpu, memory and pids."
_PARENT = "Run the worker as root, and let nothing else own the cgroup that cgroup_parent names."
_AS_A_SERVICE = (
    "Try it as the service would run: systemd-run --wait --pipe -p Delegate=yes corral doctor."
)
_MIB = 1024**2


def look_at_limits(settings: Settings) -> Iterator[Finding]:
    """Make a cgroup where the sandboxes' will be, set every limit, read it back, remove it."""
    remedy = _AS_A_SERVICE if settings.cgroup_parent == DELEGATED else _PARENT
    try:
        host = CgroupHost.of_this_host(settings.cgroup_parent)
    except (CgroupError, OSError) as error:
        yield fail("cgroups.version", str(error), _HIERARCHY)
        return
    yield ok("cgroups.version", f"version {host.version}")
    try:
        host.prepare()
    except (CgroupError, OSError) as error:
        yield fail("cgroups.parent", str(error), remedy)
        return
    try:
        # Named and marked as a worker's are: if this process is killed, a worker removes them.
        beacon = Beacon.light(host)
        try:
            with Holdings(beacon.worker).hold() as name:
                yield from _tried(host, name, remedy)
        finally:
            beacon.put_out()
    except (CgroupError, OSError) as error:
        yield fail("cgroups.limits", str(error), remedy)
    finally:
        host.release()


def _tried(host: CgroupHost, name: str, remedy: str) -> Iterator[Finding]:
    cgroup = host.sandbox(name)
    try:
        held = cgroup.create(_TRIED)
        yield ok("cgroups.parent", f"{host.parent} takes cgroups")
        yield from limits(held, has_swap=_has_swap())
        yield counters(cgroup.counters())
    except (CgroupError, OSError) as error:
        yield fail("cgroups.limits", str(error), remedy)
    finally:
        try:
            cgroup.remove()
        except (CgroupError, OSError) as error:
            yield fail("cgroups.removal", str(error), remedy)


def limits(held: HostLimits, *, has_swap: bool) -> Iterator[Finding]:
    """Judge limits as they were read back; a looser one has not come so far."""
    yield ok("limits.memory", f"set to {held.memory_bytes // _MIB} MiB and read back")
    yield swap(held.swap_bytes, has_swap=has_swap)
    yield ok("limits.cpus", f"set to {held.cpus:g} and read back")
    yield ok("limits.tasks", f"set to {held.tasks} and read back")


def swap(held: int | None, *, has_swap: bool) -> Finding:
    """Judge the limit of swap; None where the kernel does not count it."""
    name = "limits.swap"
    if held is not None:
        return ok(name, f"set to {held} and read back")
    if has_swap:
        return fail(
            name,
            "this host has swap and its kernel does not count it: a job could take more than its"
            " memory limit",
            "Boot with swapaccount=1, or turn swap off.",
        )
    return ok(name, "not counted by the kernel, and this host has none")


def counters(counted: Counters) -> Finding:
    """Judge what the kernel counts."""
    if counted.peak_tasks is None:
        return warn(
            "cgroups.counters",
            "the kernel does not keep the peak of tasks: results cannot tell it",
            "Boot Linux 6.1 or later.",
        )
    return ok("cgroups.counters", "processor time, peaks of memory and tasks, kills for memory")


def _has_swap() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1
