"""Real sandboxes, and proof after every test that nothing is left of them."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from support.host_traces import mentions, parents_of
from support.waiting import READY_WITHIN_S, OnlyWay, Prepare

from corral import CorralError, EffectiveLimits, ErrImageNotFound, ErrWorkerLost, Job
from corral.result import StartWay
from corral_worker.images.builder import ImageBuilder, default_recipes
from corral_worker.images.store import ImageStore
from corral_worker.pool.pause import build_pause_image
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.pool.ways import BEST_FIRST
from corral_worker.sandbox import ladder, lifecycle
from corral_worker.sandbox.cgroup import pids_below, remove_below
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_processes import signal_all
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart, Sandboxes
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc, find
from corral_worker.sandbox.stop import Stop

IMAGES = Path(os.environ.get("CORRAL_TEST_IMAGES", "/var/lib/corral/images"))
"""Shared by all test runs of a machine, so that images are built only once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CORRAL_LIVE") == "0":
        for item in items:
            if item.get_closest_marker("live"):
                item.add_marker(pytest.mark.skip(reason="CORRAL_LIVE=0"))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "corral-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def _image(name: str) -> Path:
    store = ImageStore(IMAGES)
    try:
        return (await store.resolve(name)).rootfs
    except ErrImageNotFound:
        return (await ImageBuilder(store).build(default_recipes()[name], name=name)).rootfs


def _image_of_this_machine(name: str) -> Path:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time():
        return anyio.run(_image, name)


@pytest.fixture(scope="session")
def images() -> Path:
    """Where the images of this machine's test runs are."""
    return IMAGES


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """Root file system with busybox."""
    return _image_of_this_machine("base")


@pytest.fixture(scope="session")
def python_rootfs() -> Path:
    """Root file system with Python."""
    return _image_of_this_machine("python")


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Directory on the host that everything here happens in."""
    # pytest's own directories can be too deep for the path of runsc's socket.
    made = Path(tempfile.mkdtemp(prefix="corral-live-"))
    (made / "r").mkdir(mode=0o700)
    (made / "b").mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def runsc(directory: Path) -> Runsc:
    """The runsc of this host; one that is missing is a failure."""
    named = os.environ.get("CORRAL_RUNSC_PATH")
    return Runsc(
        binary=find(Path(named) if named else None), root=directory / "r", platform="systrap"
    )


@pytest.fixture(scope="session")
def cgroups() -> Iterator[CgroupHost]:
    """This host's cgroups, below a parent of these tests' own."""
    host = CgroupHost.of_this_host(f"/corral-test-{os.getpid()}")
    host.prepare()
    yield host
    host.release()
    if host.version == 2:
        # A parent there serves other workers, too, and stays.
        for directory in _cgroups(host.parent):
            directory.rmdir()
    assert _cgroups(host.parent) == []


@pytest.fixture
def parent() -> Iterator[CgroupHost]:
    """A parent of cgroups for this test alone, removed with all below it."""
    host = CgroupHost.of_this_host(f"/corral-test-{os.getpid()}-{secrets.token_hex(4)}")
    host.prepare()
    yield host
    for directory in parents_of(host):
        # Only a test that failed has left any.
        signal_all(pids_below(directory))
        gives_up = time.monotonic() + 5
        while pids_below(directory) and time.monotonic() < gives_up:
            time.sleep(0.01)
        remove_below(directory)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory for workers of this test alone."""
    # pytest's own directories can be too deep for the path of runsc's socket.
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        yield Path(name)


@pytest.fixture(autouse=True, scope="session")
def _patient_ladder(slowness: float) -> Iterator[None]:
    """Let runsc take longer on a slow host before it is held to hang."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ladder, lifecycle):
            for name, value in list(vars(module).items()):
                if name.endswith("_WITHIN_S"):
                    patch.setattr(module, name, value * slowness)
        yield


def _stretched(limits: EffectiveLimits, slowness: float) -> EffectiveLimits:
    """Stretch the limits that are times: on a slow host a second is worth less."""
    return replace(limits, wall_s=limits.wall_s * slowness, cpu_time_s=limits.cpu_time_s * slowness)


class _UnhurriedColdStart(ColdStart):
    """Gives all that takes time more of it on a slow host."""

    def __init__(
        self,
        slowness: float,
        *,
        runsc: Runsc,
        cgroups: CgroupHost,
        runs: Path,
        holdings: Holdings,
    ) -> None:
        super().__init__(
            runsc=runsc,
            cgroups=cgroups,
            runs=runs,
            holdings=holdings,
            start_timeout_s=20 * slowness,
        )
        self._slowness = slowness

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        return await super().run(job, _stretched(limits, self._slowness), rootfs, stop)


@pytest.fixture(scope="session")
def holdings() -> Holdings:
    """The names of the sandboxes here."""
    return Holdings(secrets.token_hex(4))


@pytest.fixture(scope="session")
def cold(
    runsc: Runsc, cgroups: CgroupHost, directory: Path, holdings: Holdings, slowness: float
) -> ColdStart:
    """What starts a sandbox for each program."""
    return _UnhurriedColdStart(
        slowness, runsc=runsc, cgroups=cgroups, runs=directory / "b", holdings=holdings
    )


@pytest.fixture(scope="session")
def pause(directory: Path) -> Path:
    """Image that sandboxes wait in."""
    image = directory / "pause.erofs"
    anyio.run(build_pause_image, image)
    return image


@pytest.fixture(params=BEST_FIRST)
def way(request: pytest.FixtureRequest) -> StartWay:
    """How programs are started in sandboxes that wait: all ways are to be the same."""
    found: StartWay = request.param
    return found


@pytest.fixture
def prepare(runsc: Runsc, cold: ColdStart, pause: Path, way: StartWay) -> Prepare:
    """What makes sandboxes that wait."""

    def made(shape: Shape) -> Prepared:
        return Prepared(
            shape=shape,
            runsc=runsc,
            ways=OnlyWay(runsc, way),
            places=cold.place,
            pause=pause,
            start_timeout_s=READY_WITHIN_S,
        )

    return made


class WarmOnly:
    """Makes a sandbox ready for each program, and only then runs it there."""

    def __init__(
        self, runsc: Runsc, way: StartWay, cold: ColdStart, pause: Path, slowness: float
    ) -> None:
        self._runsc = runsc
        self._ways = OnlyWay(runsc, way)
        self._cold = cold
        self._pause = pause
        self._slowness = slowness

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        prepared = Prepared(
            shape=Shape.of(limits),
            runsc=self._runsc,
            ways=self._ways,
            places=self._cold.place,
            pause=self._pause,
            start_timeout_s=20 * self._slowness,
        )
        ready = anyio.Event()
        ending: Report | CorralError = ErrWorkerLost("it was never ready")

        async def live() -> None:
            with suppress(NotPreparedError):
                await prepared.live(ready.set)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live)
            await ready.wait()
            async with prepared.taken() as warm:
                try:
                    stretched = _stretched(limits, self._slowness)
                    ending = await warm.run(job, stretched, rootfs, stop)
                except CorralError as error:
                    ending = error
        if isinstance(ending, CorralError):
            raise ending
        return ending


@pytest.fixture(scope="session", params=["cold", *BEST_FIRST])
def sandboxes(
    request: pytest.FixtureRequest, runsc: Runsc, cold: ColdStart, pause: Path, slowness: float
) -> Sandboxes:
    """What the tests are about: a cold start, and a warm one by each of its ways.

    They are to be the same in all that the tests look at.
    """
    if request.param == "cold":
        return cold
    return WarmOnly(runsc, request.param, cold, pause, slowness)


@pytest.fixture(autouse=True)
async def _host_as_before(
    # Tests that are not async have an event loop, too: its descriptors are no difference.
    anyio_backend: str,
    cgroups: CgroupHost,
    runsc: Runsc,
    directory: Path,
    rootfs: Path,
) -> AsyncIterator[None]:
    descriptors = _descriptors()
    yield
    assert _remains(runsc, cgroups, directory) == []
    assert _descriptors() == descriptors


def _remains(runsc: Runsc, cgroups: CgroupHost, directory: Path) -> list[str]:
    """Return all that is left of sandboxes on this host."""
    known = subprocess.run(
        [runsc.binary, f"--root={runsc.root}", "list", "--quiet"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return [
        *(f"sandbox {name}" for name in known.stdout.split()),
        *(f"file {path}" for path in (directory / "r").iterdir()),
        *(f"file {path}" for path in (directory / "b").iterdir()),
        *(f"cgroup {path}" for parent in _cgroups(cgroups.parent) for path in _children(parent)),
        *(f"mount {line}" for line in _lines("/proc/mounts") if str(directory) in line),
        *mentions(str(directory)),
    ]


def _cgroups(path: str) -> list[Path]:
    """Return a cgroup's directories in all hierarchies."""
    mounts = [line.split()[1] for line in _lines("/proc/mounts") if " cgroup" in line]
    found = (Path(mount) / path.lstrip("/") for mount in dict.fromkeys(mounts))
    return [directory for directory in found if directory.exists()]


def _children(cgroup: Path) -> list[Path]:
    return [path for path in cgroup.iterdir() if path.is_dir()]


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except FileNotFoundError:
            continue  # the one that this directory was read through
    return found
