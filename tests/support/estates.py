"""Workers that live and workers that were killed, with directories in place of cgroups."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from corral_worker.reaper.claim import Claim, Owner
from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost

HIERARCHIES = ("blkio", "cpu", "cpuacct", "devices", "memory", "pids")
A_MINUTE = 60.0
OF_ONE_SANDBOX = Counts(cgroup=1, state_file=2, bundle=1)
OF_ITS_WORKER = Counts(directory=1)

Start = Callable[..., subprocess.Popen[bytes]]
"""Starts a process that has some words among its arguments."""


def cgroup_host(place: Path, parent: str = "/corral") -> CgroupHost:
    for name in HIERARCHIES:
        (place / name).mkdir(parents=True, exist_ok=True)
    mounts = (f"1 2 0:3 / {place}/{name} rw - cgroup cgroup rw,{name}\n" for name in HIERARCHIES)
    return CgroupHost(parent, mountinfo="".join(mounts), membership="1:memory:/\n")


@contextmanager
def living(state_dir: Path, cgroups: CgroupHost) -> Iterator[Claim]:
    claim = Claim.make(state_dir, cgroups)
    try:
        yield claim
    finally:
        claim.release()


def killed(state_dir: Path, cgroups: CgroupHost) -> Claim:
    """Return the claim of a worker whose process was killed: its number is another's now."""
    claim = Claim.make(state_dir, cgroups)
    owner = owner_of(claim)
    earlier = msgspec.structs.replace(owner.process, started=owner.process.started - 1)
    write_owner(claim, msgspec.structs.replace(owner, process=earlier))
    gives_up_its_locks(claim)
    return claim


def locks(claim: Claim) -> tuple[DirectoryLock, DirectoryLock]:
    return claim._lock, claim._beacon.lock


def gives_up_its_locks(claim: Claim) -> None:
    for lock in locks(claim):
        lock.close()


def owner_of(claim: Claim) -> Owner:
    return msgspec.json.decode((claim.directory / "owner").read_bytes(), type=Owner)


def write_owner(claim: Claim, owner: Owner) -> None:
    (claim.directory / "owner").write_bytes(msgspec.json.encode(owner))


def furnish(claim: Claim, cgroups: CgroupHost, number: int = 1) -> str:
    """Leave all of a sandbox but its processes, and return its id."""
    sandbox = f"corral-{claim.worker}-{number:06x}"
    for name in (f"{sandbox}_sandbox:{sandbox}.state", f"runsc-{sandbox}.sock"):
        (claim.runsc_root / name).touch()
    (claim.runs / sandbox / "rootfs").mkdir(parents=True)
    (claim.runs / sandbox / "config.json").write_text("TOKEN=secret")
    for name in HIERARCHIES:
        (cgroups._hierarchies[name] / cgroups.parent.lstrip("/") / sandbox).mkdir(parents=True)
    return sandbox


def traces(claim: Claim, cgroups: CgroupHost) -> list[str]:
    """Return all that is left of a worker."""
    places = [claim.directory.parent, *(m.parent for m in cgroups._hierarchies.values())]
    return [str(path) for place in places for path in place.rglob(f"*{claim.worker}*")]


def sweep(state_dir: Path, cgroups: CgroupHost) -> Sweep:
    return Sweeper(state_dir=state_dir, cgroups=cgroups, own=None).sweep(
        frozenset(), Deadline(A_MINUTE)
    )
