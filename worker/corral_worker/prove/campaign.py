"""The attack suite on a host, from the settings of its worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio.to_thread
import msgspec

from corral_worker.executor.executor import Runtime
from corral_worker.host import open_host
from corral_worker.prove.attack import Attack
from corral_worker.prove.lures import lures
from corral_worker.prove.prover import Ground, Proof, Prover
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.settings import Settings


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """What came of all attacks."""

    passed: bool
    attacks: tuple[Proof, ...]
    left: tuple[str, ...]
    """What was still there of this process's doings when all was over."""
    duration_s: float
    slowness: float
    runsc_version: str
    platform: str
    cgroup_version: int


async def attack_host(
    settings: Settings, attacks: Sequence[Attack], *, slowness: float, at_once: int
) -> Campaign:
    """Open the host as a worker does, attack it from sandboxes, and leave it as it was.

    Args:
        settings: of this host's worker.
        attacks: the ones to make.
        slowness: how many times slower this machine is than a usual one.
        at_once: how many attacks run at one time.

    Raises:
        CorralError: no worker could start here: see :func:`corral_worker.host.open_host`.
    """
    began = time.monotonic()
    before = await anyio.to_thread.run_sync(_belongings)
    async with lures(slowness=slowness) as out, open_host(settings) as host:
        cgroups = await anyio.to_thread.run_sync(CgroupHost.of_this_host, settings.cgroup_parent)
        ground = Ground(
            images=host.images,
            sandboxes=host.sandboxes,
            runtime=Runtime(runsc_version=host.runsc_version, platform=settings.platform),
            state_dir=settings.state_dir,
            cgroup_parent=cgroups.parent,
        )
        proofs = await Prover(ground, out, at_once=at_once).prove(attacks)
    left = tuple(sorted(await anyio.to_thread.run_sync(_belongings) - before))
    return Campaign(
        passed=not left and all(proof.passed for proof in proofs),
        attacks=proofs,
        left=left,
        duration_s=time.monotonic() - began,
        slowness=slowness,
        runsc_version=host.runsc_version,
        platform=settings.platform,
        cgroup_version=cgroups.version,
    )


def _belongings() -> set[str]:
    """Return the children and the open files of this process."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread may end at any moment, and its children are then another's.
        with suppress(FileNotFoundError, ProcessLookupError):
            found.update(f"process {pid}" for pid in (task / "children").read_text().split())
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"descriptor {link.readlink()}")
        except FileNotFoundError:
            continue  # the one that this directory was read through
    return found
