"""What a worker needs of its host, checked before the first job is taken."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec
import structlog

from corral import (
    EffectiveLimits,
    ErrGVisorNotAvailable,
    ErrImageNotFound,
    ErrProgramNotFound,
    ErrSandboxCreationFailed,
    Fault,
    Job,
)
from corral_worker.admission.gate import Gate
from corral_worker.admission.sampler import HostSampler
from corral_worker.admission.trial import Trial
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.store import ImageStore
from corral_worker.pool.pause import build_pause_image
from corral_worker.pool.pool import SANDBOX_BYTES, Budget, Pool
from corral_worker.pool.prepared import Prepared, Shape
from corral_worker.pool.ways import Ways
from corral_worker.process.huge_pages import in_huge_pages
from corral_worker.process.reaping import reaping
from corral_worker.process.thread import in_thread
from corral_worker.reaper.claim import Claim
from corral_worker.reaper.reaper import Reaper
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart, Sandboxes
from corral_worker.sandbox.removal import Removal
from corral_worker.sandbox.runsc import Runsc, find, is_old
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.sandbox.stop import Stop
from corral_worker.settings import Settings

_VERSION_WITHIN_S = 10.0
_REMOVE_WITHIN_S = 10.0
# No image has this: a sandbox that says so has booted and has read its root file system.
_ABSENT_PROGRAM = "/.corral-self-test"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A host on which sandboxes were seen to work."""

    images: ImageStore
    sandboxes: Sandboxes
    reaper: Reaper
    runsc_version: str
    sampler: HostSampler
    trial: Trial


@asynccontextmanager
async def open_host(settings: Settings, gate: Gate | None = None) -> AsyncIterator[Host]:
    """Find runsc, clean up after dead workers, and boot a sandbox to prove it all.

    The directories and cgroups of this worker are removed at the end.

    Args:
        settings: the worker's.
        gate: closed by who watches the host; without it none is watched.

    Raises:
        ErrGVisorNotAvailable: there is no runsc, it is too old, or a sandbox
            does not boot.
        ErrSandboxCreationFailed: cgroups or directories cannot be made.
        ErrImageNotFound: the host has no image at all.
    """
    # Every sandbox takes a handful: the usual soft limit of 1024 is soon reached.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with (
        reaping(),
        _claimed(settings) as (claim, cgroups),
        _runsc(settings, claim.runsc_root) as (runsc, version),
        Removal.open(runsc) as removal,
    ):
        holdings = Holdings(claim.worker)
        reaper = Reaper(
            state_dir=settings.state_dir, cgroups=cgroups, own=(holdings, claim.directory)
        )
        await reaper.reap()
        cold = ColdStart(
            runsc=runsc,
            cgroups=cgroups,
            runs=claim.runs,
            holdings=holdings,
            start_timeout_s=settings.start_timeout_s,
            removal=removal,
        )
        images = ImageStore(settings.images)
        trial = Trial(partial(_self_test, images, cold))
        await _self_test(images, cold)
        async with _warm(
            settings, cold, runsc, gate=gate or Gate(), pause=claim.directory / "pause.erofs"
        ) as sandboxes:
            yield Host(
                images=images,
                sandboxes=sandboxes,
                reaper=reaper,
                runsc_version=version,
                sampler=HostSampler(
                    claim.directory,
                    runsc_is_same=runsc.is_same,
                    sandboxes_start=lambda: trial.works,
                ),
                trial=trial,
            )


@asynccontextmanager
async def _runsc(settings: Settings, root: Path) -> AsyncIterator[tuple[Runsc, str]]:
    """Give the runsc to use, and its version."""
    with ExitStack() as copies:
        try:
            binary = await in_thread(find, settings.runsc_path)
            copy = await in_thread(copies.enter_context, in_huge_pages(binary))
            runsc = Runsc(binary=binary, root=root, platform=settings.platform, copy=copy)
            runsc.pin()
            version = await runsc.version(within_s=_VERSION_WITHIN_S)
        except RunscError as error:
            raise ErrGVisorNotAvailable(error.detail) from error
        if is_old(version):
            raise ErrGVisorNotAvailable(
                f"{binary} is version {version}, older than 2024-07-29, the first known to"
                " work: install a newer runsc, or set CORRAL_RUNSC_PATH"
            )
        yield runsc, version


@asynccontextmanager
async def _claimed(settings: Settings) -> AsyncIterator[tuple[Claim, CgroupHost]]:
    """Give this worker its directory and cgroups, and remove them at the end."""
    try:
        cgroups = await in_thread(CgroupHost.of_this_host, settings.cgroup_parent)
        await in_thread(cgroups.prepare)
        claim = await in_thread(Claim.make, settings.state_dir, cgroups)
    except CgroupError as error:
        raise ErrSandboxCreationFailed(str(error)) from error
    except OSError as error:
        raise ErrSandboxCreationFailed(
            f"{error.filename}: {error.strerror}: the worker needs to be root, and"
            f" {settings.state_dir} writable"
        ) from error
    try:
        yield claim, cgroups
    finally:
        with anyio.move_on_after(_REMOVE_WITHIN_S, shield=True):
            await in_thread(claim.release)


@asynccontextmanager
async def _warm(
    settings: Settings, cold: ColdStart, runsc: Runsc, *, gate: Gate, pause: Path
) -> AsyncIterator[Sandboxes]:
    """Yield what keeps sandboxes ready, or the cold start if that is not wanted or not possible."""
    most = min(settings.warm_sandboxes, settings.warm_memory_bytes // SANDBOX_BYTES)
    if not most:
        yield cold
        return
    try:
        await build_pause_image(pause)
    except (ImageBuildError, OSError) as error:
        structlog.get_logger().warning("pool.not_possible", detail=str(error))
        yield cold
        return

    ways = Ways(runsc)

    def prepare(shape: Shape) -> Prepared:
        return Prepared(
            shape=shape,
            runsc=runsc,
            ways=ways,
            places=cold.place,
            pause=pause,
            start_timeout_s=settings.start_timeout_s,
        )

    async with Pool.open(
        cold=cold,
        prepare=prepare,
        runsc=runsc,
        budget=Budget(sandboxes=most, slots=settings.slots),
        gate=gate,
        expected=EffectiveLimits(),
    ) as pool:
        yield pool


async def _self_test(store: ImageStore, sandboxes: ColdStart) -> None:
    images = await store.list()
    if not images:
        raise ErrImageNotFound(
            f"this host has no images in {store.root}: make some with"
            " 'corral images build base' and 'corral images build python'"
        )
    report = await sandboxes.run(
        Job(argv=(_ABSENT_PROGRAM,)), EffectiveLimits(), images[0].rootfs, Stop()
    )
    if isinstance(report.ending, ErrProgramNotFound):
        return
    ending = report.ending
    said = f"{ending}. {ending.detail}" if isinstance(ending, Fault) else str(ending)
    raise ErrGVisorNotAvailable(f"a sandbox does not boot on this host: {said}")
