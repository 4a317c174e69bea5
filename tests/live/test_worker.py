"""A worker as an operator runs it, and its callers: corral's client, stock arq, the command."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import arq
import msgspec
import pytest
import redis
from arq.connections import ArqRedis, RedisSettings

from corral import (
    Client,
    ErrGVisorNotAvailable,
    ErrImageNotFound,
    ErrInvalidJob,
    ErrProgramNotFound,
    ErrSecurityViolation,
    ErrWorkerLost,
    Job,
    JobCancelled,
    JobStatus,
    Limits,
    Outcome,
    SubmittedJob,
    WaitsFor,
    codec,
    keys,
)
from corral_worker.sandbox.cgroup import pids_below, remove_below, signal_all
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_v1 import NEEDED
from corral_worker.sandbox.runsc import find
from corral_worker.settings import Secret, Settings

pytestmark = pytest.mark.live

SLEEPER = Job(argv=("sh", "-c", "echo started; sleep 60"), image="base")
HELLO = Job(argv=("echo", "hello"), image="base")


class RunningWorker:
    """A worker process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def logged(self, event: str) -> None:
        while not any(entry["event"] == event for entry in self.events()):
            assert self.process.poll() is None, self._log.read_text()
            await anyio.sleep(0.02)

    async def stopped(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(120):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    # pytest's own directories can be too deep for the path of runsc's socket.
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def base_image_dir() -> Path:
    """The host's own images; ``base`` is built if it is not among them."""
    images = Settings(redis_url=Secret("")).images
    build = [sys.executable, "-m", "corral_worker", "images", "build", "--missing", "base"]
    subprocess.run(build, check=True)
    return images


@pytest.fixture
def environ(redis_url: str, state_dir: Path, base_image_dir: Path) -> Iterator[dict[str, str]]:
    environ = {
        "PATH": os.environ["PATH"],
        "CORRAL_REDIS_URL": redis_url,
        "CORRAL_STATE_DIR": str(state_dir),
        "CORRAL_IMAGE_DIR": str(base_image_dir),
        "CORRAL_CGROUP_PARENT": f"/corral-worker-test-{os.getpid()}",
        "CORRAL_LOG_FORMAT": "json",
        "SECRET_OF_THE_HOST": "do-not-leak",
    }
    yield environ
    with suppress(FileNotFoundError):
        _unified_parent(environ).rmdir()


@asynccontextmanager
async def started_worker(
    environ: Mapping[str, str], *, by: Sequence[str] = ()
) -> AsyncIterator[RunningWorker]:
    """Start a worker, by another program if one is given."""
    log = Path(environ["CORRAL_STATE_DIR"]) / "worker.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: ASYNC220 - its end is waited for in a thread
            [*by, sys.executable, "-m", "corral_worker", "worker"], env=environ, stderr=stream
        )
    worker = RunningWorker(process, log)
    try:
        with anyio.fail_after(120):
            await worker.logged("worker.ready")
        yield worker
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def running_worker(environ: Mapping[str, str]) -> AsyncIterator[RunningWorker]:
    async with started_worker(environ) as worker:
        yield worker
        if worker.process.poll() is None:
            assert await worker.stopped() == 0
        assert _left_behind(environ) == []


def _left_behind(environ: Mapping[str, str]) -> list[str]:
    state = environ["CORRAL_STATE_DIR"]
    return [
        *map(str, _cgroups(environ)),
        *(str(path) for path in Path(state).glob("w-*")),
        *(line for line in Path("/proc/mounts").read_text().splitlines() if state in line),
        *_mentions(state),
    ]


def _programs(state_dir: Path) -> list[Path]:
    found = state_dir.glob("w-*/r/*.state")
    return [file for file in found if b'"status":"running"' in _read(file)]


def _cgroups(environ: Mapping[str, str]) -> list[Path]:
    """Return the cgroups that are there for sandboxes."""
    parent = environ["CORRAL_CGROUP_PARENT"].lstrip("/")
    return [
        # Version 1 has a parent in each hierarchy.
        *Path("/sys/fs/cgroup").glob(f"*/{parent}"),
        # The parent in version 2 serves other workers, too, and stays.
        *(path for path in _unified_parent(environ).glob("*") if path.is_dir()),
    ]


def _unified_parent(environ: Mapping[str, str]) -> Path:
    return Path("/sys/fs/cgroup", environ["CORRAL_CGROUP_PARENT"].lstrip("/"))


def _mentions(text: str) -> list[str]:
    found = Path("/proc").glob("[0-9]*/cmdline")
    return [str(path) for path in found if text.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
async def worker(environ: dict[str, str]) -> AsyncIterator[RunningWorker]:
    async with running_worker(environ) as worker:
        yield worker


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with Client(redis_url) as client:
        yield client


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    pool = await arq.create_pool(
        RedisSettings.from_dsn(redis_url),
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
    )
    yield pool
    await pool.aclose(close_connection_pool=True)


async def _running(job: SubmittedJob) -> None:
    with anyio.fail_after(120):
        while await job.status() is not JobStatus.RUNNING:
            await anyio.sleep(0.02)


async def _started(environ: Mapping[str, str], count: int = 1) -> None:
    """Return once so many programs have started."""
    with anyio.fail_after(120):
        while len(_programs(Path(environ["CORRAL_STATE_DIR"]))) < count:
            await anyio.sleep(0.01)


async def test_a_clients_job_comes_back_with_all_that_is_known(
    client: Client, worker: RunningWorker
) -> None:
    job = await client.submit(
        Job(argv=("sh", "-c", "echo out; echo err >&2; exit 3"), image="base", labels={"a": "b"}),
        tenant="acme",
    )
    result = await job.result(timeout=30)

    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 3)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.labels == {"a": "b"}
    assert result.usage is not None
    assert result.usage.cpu_s > 0
    assert result.host_limits is not None
    assert result.limits is not None
    assert result.limits.memory_bytes == result.host_limits.memory_bytes
    assert result.provenance is not None
    assert result.provenance.image_digest.startswith("sha256:")
    assert result.provenance.attempt == 1


async def test_stock_arq_gets_results_and_typed_rejections(
    pool: ArqRedis, worker: RunningWorker
) -> None:
    good = await pool.enqueue_job(
        "execute", HELLO, _job_id="mine:1", _queue_name="arq:queue:default"
    )
    bad = await pool.enqueue_job(
        "execute",
        msgspec.structs.replace(HELLO, privileged=True, network="host"),
        _queue_name="arq:queue:default",
    )
    assert good is not None
    assert bad is not None

    assert (await good.result(timeout=30, poll_delay=0.02)).stdout == b"hello\n"
    with pytest.raises(ErrSecurityViolation) as caught:
        await bad.result(timeout=30, poll_delay=0.02)
    assert [v.rule for v in caught.value.violations] == ["privileged", "host_network"]


async def test_stock_arqs_abort_kills_the_sandbox_and_keeps_the_output(
    pool: ArqRedis, client: Client, worker: RunningWorker
) -> None:
    submitted = await client.submit(SLEEPER)
    await _running(submitted)
    job = arq.jobs.Job(submitted.id, pool, "arq:queue:default", codec.deserialize)

    assert await job.abort(timeout=30, poll_delay=0.02)
    with pytest.raises(asyncio.CancelledError) as caught:
        await job.result()
    assert isinstance(caught.value, JobCancelled)
    assert caught.value.result.outcome is Outcome.CANCELLED


async def test_a_cancelled_jobs_certificate_says_it_is_dead(
    client: Client, worker: RunningWorker
) -> None:
    job = await client.submit(SLEEPER, tenant="acme")
    await _running(job)

    assert await job.cancel(timeout=30)
    result = await job.result()
    if result.termination is not None:  # None if it was still in its queue inside the worker
        assert result.termination.verified_dead
        assert result.termination.requested_by == "caller"
    assert not await job.cancel() or result.outcome is Outcome.CANCELLED


async def test_every_bad_input_has_a_named_error_and_the_worker_goes_on(
    client: Client, pool: ArqRedis, worker: RunningWorker
) -> None:
    unknown_image = await client.submit(msgspec.structs.replace(HELLO, image="nope"))
    missing_program = await client.submit(msgspec.structs.replace(HELLO, argv=("nope",)))
    excessive = await client.submit(
        msgspec.structs.replace(HELLO, limits=Limits(memory_bytes=2**39))
    )
    newer = codec.serialize({"t": None, "f": "execute", "a": (HELLO,), "k": {}, "et": 1})
    poison = {
        "default:newer": newer.replace(b'"v":1', b'"v":2'),
        "default:garbage": b"\xff\xfe garbage",
        "default:pickle": b"\x80\x04N.",
        "default:empty-argv": newer.replace(b'["echo","hello"]', b"[]"),
        "default:nul": newer.replace(b'"hello"', b'"hel\\u0000lo"'),
        "default:negative": newer.replace(b'"image":', b'"limits":{"wall_s":-1},"image":'),
        "default:user": newer.replace(b'"image":', b'"user":"bob","image":'),
    }
    for job_id, payload in poison.items():
        await pool.set(keys.job(job_id), payload)
        await pool.zadd(keys.queue("default"), {job_id: 1})

    with pytest.raises(ErrImageNotFound):
        await unknown_image.result(timeout=30)
    with pytest.raises(ErrProgramNotFound):
        await missing_program.result(timeout=30)
    with pytest.raises(ErrSecurityViolation):
        await excessive.result(timeout=30)
    for job_id in poison:
        with pytest.raises(ErrInvalidJob):
            await client.job(job_id).result(timeout=30)
    with pytest.raises(ErrInvalidJob):
        await client.submit(HELLO, tenant="../x")
    assert (await (await client.submit(HELLO)).result(timeout=30)).ok
    assert worker.process.poll() is None


async def test_a_tenants_own_policy_narrows_the_operators(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    config = state_dir / "worker.toml"
    config.write_text("[tenants.acme.policy.ceilings]\nwall_s = 5\n")
    async with running_worker({**environ, "CORRAL_CONFIG": str(config)}):
        job = msgspec.structs.replace(HELLO, limits=Limits(wall_s=6))
        narrow = await client.submit(job, tenant="acme")
        wide = await client.submit(job, tenant="other")
        default = await client.submit(HELLO, tenant="acme")

        with pytest.raises(ErrSecurityViolation) as caught:
            await narrow.result(timeout=30)
        assert [v.field for v in caught.value.violations] == ["$.limits.wall_s"]
        assert (await wide.result(timeout=30)).ok
        limits = (await default.result(timeout=30)).limits
        assert limits is not None
        assert limits.wall_s == 5


async def test_on_sigterm_running_jobs_finish_and_queued_ones_stay(
    environ: dict[str, str], client: Client
) -> None:
    async with running_worker({**environ, "CORRAL_SLOTS": "1"}) as worker:
        running = await client.submit(Job(argv=("sh", "-c", "sleep 2; echo done"), image="base"))
        await _running(running)
        queued = await client.submit(HELLO)

        assert await worker.stopped() == 0
    assert (await running.result(timeout=1)).stdout == b"done\n"
    assert await queued.status() is JobStatus.QUEUED


async def test_a_second_signal_ends_the_grace(environ: dict[str, str], client: Client) -> None:
    async with running_worker({**environ, "CORRAL_DRAIN_GRACE_S": "3600"}) as worker:
        job = await client.submit(SLEEPER)
        await _started(environ, 1)
        worker.process.send_signal(signal.SIGTERM)
        await worker.logged("worker.draining")

        assert await worker.stopped() == 0
    with pytest.raises(ErrWorkerLost):
        await job.result(timeout=1)


async def test_after_the_grace_a_started_job_is_lost_unless_it_allows_another_attempt(
    environ: dict[str, str], client: Client
) -> None:
    async with running_worker({**environ, "CORRAL_DRAIN_GRACE_S": "0"}) as worker:
        once = await client.submit(SLEEPER)
        twice = await client.submit(msgspec.structs.replace(SLEEPER, attempts=2))
        await _started(environ, 2)

        assert await worker.stopped() == 0
    with pytest.raises(ErrWorkerLost) as caught:
        await once.result(timeout=1)
    assert caught.value.retry_safety == "started"
    assert await twice.status() is JobStatus.QUEUED


@asynccontextmanager
async def _cgroups_removed(environ: Mapping[str, str]) -> AsyncIterator[None]:
    """Remove what a killed worker leaves, and kill what it should not have left."""
    try:
        yield
    finally:
        for cgroup in _cgroups(environ):
            signal_all(pids_below(cgroup))
        with anyio.move_on_after(5):
            while any(map(pids_below, _cgroups(environ))):
                await anyio.sleep(0.01)
        for cgroup in _cgroups(environ):
            remove_below(cgroup)


async def test_a_worker_that_is_killed_takes_its_sandboxes_along(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    async with _cgroups_removed(environ), started_worker(environ) as worker:
        await client.submit(SLEEPER)
        await _started(environ)
        held = {pid for cgroup in _cgroups(environ) for pid in pids_below(cgroup)}

        worker.process.kill()
        with anyio.fail_after(120):
            while _mentions(str(state_dir)) or any(map(pids_below, _cgroups(environ))):
                await anyio.sleep(0.01)

    assert len(held) > 1


async def test_a_worker_that_is_killed_takes_along_what_waits_for_a_job(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    async with _cgroups_removed(environ), started_worker(environ) as worker:
        starts: list[str] = []
        with anyio.fail_after(120):
            while "warm" not in starts:
                result = await (await client.submit(HELLO)).result(timeout=60)
                assert result.provenance
                starts.append(result.provenance.start)
                await anyio.sleep(0.5)
            while not _programs(state_dir):
                await anyio.sleep(0.01)

        worker.process.kill()
        with anyio.fail_after(120):
            while _mentions(str(state_dir)) or any(map(pids_below, _cgroups(environ))):
                await anyio.sleep(0.01)


async def test_a_worker_that_starts_again_removes_what_it_left_when_it_was_killed_and_only_that(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    elsewhere = state_dir / "neighbour"
    elsewhere.mkdir()
    # However slow the machine, nothing else is to end the jobs.
    environ["CORRAL_LEASE_S"] = "300"
    # What waits for a job is no job's, and would be counted, too.
    environ["CORRAL_WARM_SANDBOXES"] = "0"
    endless = Job(
        argv=("sh", "-c", "sleep 1000"), image="base", limits=Limits(wall_s=300, cpu_time_s=300)
    )
    # Of the same host and the same cgroups; it is not to be the one that cleans up.
    neighbours = {
        **environ,
        "CORRAL_STATE_DIR": str(elsewhere),
        "CORRAL_SLOTS": "1",
        "CORRAL_REAP_EVERY_S": "3600",
    }
    async with _cgroups_removed(environ):
        async with started_worker(neighbours) as neighbour:
            theirs = await client.submit(endless)
            await _started(neighbours)
            async with started_worker(environ) as worker:
                for _ in range(2):
                    await client.submit(endless)
                await _started(environ, 2)
                worker.process.kill()
                await anyio.to_thread.run_sync(worker.process.wait)
            (left,) = _directories(state_dir)
            mark = left.name.removeprefix("w-")
            assert _cgroups_of(mark, environ)

            async with started_worker(environ) as again:
                (found,) = (
                    entry for entry in again.events() if entry["event"] == "reaper.cleaned_up"
                )
                assert (found["cgroup"], found["bundle"], found["directory"]) == (2, 2, 1)
                assert not left.exists()
                assert _cgroups_of(mark, environ) == []
                assert await theirs.status() is JobStatus.RUNNING
                assert await theirs.cancel(timeout=30)
                assert (await theirs.result()).outcome is Outcome.CANCELLED
                assert await again.stopped() == 0
            assert await neighbour.stopped() == 0
        assert _left_behind(environ) == _left_behind(neighbours) == []


def _directories(state_dir: Path) -> list[Path]:
    return list(state_dir.glob("w-*"))


def _cgroups_of(mark: str, environ: Mapping[str, str]) -> list[Path]:
    parent = environ["CORRAL_CGROUP_PARENT"].lstrip("/")
    places = Path("/sys/fs/cgroup")
    return [*places.glob(f"*/{parent}/corral-{mark}*"), *places.glob(f"{parent}/corral-{mark}*")]


@pytest.fixture
def delegated() -> Iterator[list[Path]]:
    """A cgroup of this test's own, as systemd's Delegate= gives a service: in each hierarchy."""
    host = CgroupHost.of_this_host(f"/corral-test-{os.getpid()}-{secrets.token_hex(4)}")
    host.prepare()
    mounts = {host._hierarchies[name] for name in NEEDED} if host.version == 1 else set()
    if host._unified and not mounts:
        mounts.add(host._unified)
    parents = [mount / host.parent.lstrip("/") for mount in mounts]
    services = [parent / "service" for parent in parents]
    for service in services:
        service.mkdir(parents=True)
    yield services
    for parent in parents:
        remove_below(parent)


async def test_a_worker_in_a_delegated_cgroup_keeps_to_it(
    environ: dict[str, str], client: Client, delegated: list[Path], slowness: float
) -> None:
    join = "".join(f"echo $$ >{service}/cgroup.procs; " for service in delegated)
    environ["CORRAL_CGROUP_PARENT"] = "delegated"
    async with started_worker(environ, by=("sh", "-c", f'{join} exec "$@"', "sh")) as worker:
        job = await client.submit(SLEEPER)
        await _started(environ)
        held = {pid for service in delegated for pid in pids_below(service / "jobs")}
        assert await job.cancel(timeout=30 * slowness)
        result = await (await client.submit(HELLO)).result(timeout=30 * slowness)

        assert await worker.stopped() == 0

    assert len(held) > 1
    assert worker.process.pid not in held
    assert result.host_limits is not None
    assert result.limits is not None
    assert result.host_limits.memory_bytes == result.limits.memory_bytes
    assert [path for service in delegated for path in service.glob("jobs/*/")] == []


async def test_a_host_without_images_is_told_how_to_make_them(
    environ: dict[str, str], state_dir: Path
) -> None:
    empty = {**environ, "CORRAL_IMAGE_DIR": str(state_dir / "images")}

    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "corral_worker", "worker", "--check"],
            env=empty,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
    )

    assert done.returncode == 1
    assert f"no images in {state_dir}/images" in done.stderr
    assert "corral images build base" in done.stderr
    assert "Traceback" not in done.stderr
    assert "This host can run jobs" not in done.stdout
    assert _left_behind(environ) == []


@pytest.fixture
def small_disk(state_dir: Path) -> Iterator[Path]:
    """A file system of the test's own, to be filled."""
    disk = state_dir / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    yield disk
    left = list(disk.glob("w-*"))
    subprocess.run(["umount", disk], check=True)
    assert left == []


async def test_a_worker_takes_no_job_while_its_disk_is_full_and_goes_on_by_itself(
    environ: dict[str, str], client: Client, state_dir: Path, small_disk: Path
) -> None:
    config = state_dir / "worker.toml"
    config.write_text("[admission]\ndisk_bytes = 16777216\n")
    own = {**environ, "CORRAL_STATE_DIR": str(small_disk), "CORRAL_CONFIG": str(config)}
    async with started_worker(own) as worker:
        assert (await (await client.submit(HELLO)).result(timeout=30)).ok
        (small_disk / "full").write_bytes(bytes(56 * 1024**2))
        with anyio.fail_after(120):
            await worker.logged("worker.unready")
        waiting = await client.submit(HELLO)
        with pytest.raises(TimeoutError):
            await waiting.result(timeout=1.5)
        with anyio.fail_after(120):
            while not (found := await waiting.explain()).hosts_short_of:
                await anyio.sleep(0.05)
        assert found.status is JobStatus.QUEUED
        assert (found.waits_for, found.hosts_short_of) == ((WaitsFor.WORKER,), ("disk",))

        (small_disk / "full").unlink()
        assert (await waiting.result(timeout=30)).ok

        unready = next(e for e in worker.events() if e["event"] == "worker.unready")
        assert unready["short_of"] == ["disk"]
        assert any(e["event"] == "worker.ready_again" for e in worker.events())
        assert await worker.stopped() == 0


async def test_a_worker_whose_runsc_is_replaced_takes_no_more_jobs_but_ends_as_it_should(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    binary = state_dir / "runsc"
    shutil.copy(find(None), binary)
    async with running_worker({**environ, "CORRAL_RUNSC_PATH": str(binary)}) as worker:
        assert (await (await client.submit(HELLO)).result(timeout=30)).ok
        shutil.copy(binary, state_dir / "new")
        (state_dir / "new").rename(binary)

        job = await client.submit(HELLO)
        with anyio.fail_after(120):
            await worker.logged("worker.unready")

        # Whichever was first: it waits for another worker, or it may be submitted again.
        if await job.status() is JobStatus.FINISHED:
            with pytest.raises(ErrGVisorNotAvailable) as caught:
                await job.result(timeout=1)
            assert caught.value.retryable
        other = await client.submit(HELLO)
        with pytest.raises(TimeoutError):
            await other.result(timeout=1.5)
        assert worker.process.poll() is None


@pytest.mark.skipif(
    not Path("/proc/pressure/cpu").exists(), reason="this kernel keeps no count of pressure"
)
async def test_times_of_a_job_on_a_host_that_is_too_busy_are_marked(
    client: Client, worker: RunningWorker
) -> None:
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])  # noqa: ASYNC220
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        job = Job(
            argv=("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"), image="base"
        )
        result = await (await client.submit(job)).result(timeout=60)
    finally:
        for other in others:
            other.kill()
            other.wait()

    assert result.ok
    assert result.timing_unreliable


async def test_the_log_has_one_line_a_job_and_nothing_of_its_content(
    client: Client, worker: RunningWorker
) -> None:
    secret = "payload-that-is-nobodys-business"
    job = Job(
        argv=("sh", "-c", f"echo {secret}; cat"),
        image="base",
        env={"TOKEN": secret},
        stdin=secret.encode(),
    )
    await (await client.submit(job)).result(timeout=30)
    with pytest.raises(ErrSecurityViolation):
        await (await client.submit(msgspec.structs.replace(job, user="0"))).result(timeout=30)

    finished = [entry for entry in worker.events() if entry["event"] == "job.finished"]
    assert [entry.get("outcome") for entry in finished] == ["exited", None]
    assert not any(secret in json.dumps(entry) for entry in worker.events())


async def test_nothing_of_the_workers_environment_is_inside(
    client: Client, worker: RunningWorker
) -> None:
    result = await (await client.submit(Job(argv=("env",), image="base"))).result(timeout=30)

    assert b"do-not-leak" not in result.stdout
    assert b"CORRAL" not in result.stdout


async def test_the_worker_outlives_a_redis_that_drops_its_connections(
    client: Client, redis_url: str, worker: RunningWorker
) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        for _ in range(3):
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(0.05)

    assert (await (await client.submit(HELLO)).result(timeout=30)).ok


def _wrapper(directory: Path) -> Path:
    """Return a runsc that notes its verbs and keeps the configurations it is given."""
    real = shutil.which("runsc")
    script = directory / "runsc-wrapper"
    script.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            bundle=
            for word in "$@"; do
                case $word in run | kill | delete) echo "$word" >>{directory}/verbs ;; esac
                if [ "$bundle" = next ]; then cp "$word/config.json" {directory}/; bundle=; fi
                if [ "$word" = --bundle ]; then bundle=next; fi
            done
            env >>{directory}/environments
            exec {real} "$@"
            """)
    )
    script.chmod(0o755)
    return script


async def test_cancel_issues_kill_and_then_delete_and_runsc_gets_no_environment(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    seen = state_dir / "seen"
    seen.mkdir()
    environ = {
        **environ,
        "CORRAL_RUNSC_PATH": str(_wrapper(seen)),
        "CORRAL_WARM_SANDBOXES": "0",
        "NOTIFY_SOCKET": "/run/notify",
    }
    async with running_worker(environ):
        (seen / "verbs").write_text("")
        job = await client.submit(SLEEPER)
        await _started(environ)
        assert await job.cancel(timeout=30)

    assert (seen / "verbs").read_text().split() == ["run", "kill", "delete"]
    names = {line.partition("=")[0] for line in (seen / "environments").read_text().splitlines()}
    assert names <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}
    config = json.loads((seen / "config.json").read_text())
    assert config["process"]["args"] == list(SLEEPER.argv)


@pytest.mark.parametrize(
    ("options", "program", "code", "out"),
    [
        ((), ("sh", "-c", "echo $((6*7))"), 0, b"42\n"),
        ((), ("sh", "-c", "exit 7"), 7, b""),
        (("--env", "A=b c"), ("sh", "-c", 'echo "$A"'), 0, b"b c\n"),
        (("--stdin", "-"), ("cat",), 0, b"from stdin"),
        (("--timeout", "1"), ("sh", "-c", "echo started; sleep 60"), 124, b"started\n"),
        (("--image", "nope"), ("true",), 125, b""),
        ((), ("nope",), 127, b""),
        (("--user", "0"), ("true",), 125, b""),
    ],
)
async def test_the_run_command_is_like_the_program_itself(
    environ: dict[str, str],
    worker: RunningWorker,
    options: tuple[str, ...],
    program: tuple[str, ...],
    code: int,
    out: bytes,
) -> None:
    done = await _corral_run(environ, *options, "--", *program)

    assert (code, out) == (done.returncode, done.stdout)


async def test_the_run_command_prints_the_whole_result_as_json(
    environ: dict[str, str], worker: RunningWorker
) -> None:
    done = await _corral_run(
        environ, "--json", "--timeout", "1", "--", "sh", "-c", "echo started; sleep 60"
    )
    result = json.loads(done.stdout)

    assert (result["outcome"], result["stdout"]) == ("wall_timeout", "started\n")
    assert result["termination"]["verified_dead"]


async def _corral_run(
    environ: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    image = () if "--image" in arguments else ("--image", "base")
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "corral_worker", "run", *image, *arguments],
            env={"PATH": environ["PATH"], "CORRAL_REDIS_URL": environ["CORRAL_REDIS_URL"]},
            input=b"from stdin",
            capture_output=True,
            check=False,
            timeout=50,
        )
    )


async def test_a_signal_before_the_worker_is_ready_ends_it_and_leaves_nothing(
    environ: dict[str, str],
) -> None:
    for delay in (0.3, 0.6, 0.8):
        process = await anyio.open_process(
            [sys.executable, "-m", "corral_worker", "worker"],
            env=environ,
            stderr=subprocess.DEVNULL,
        )
        await anyio.sleep(delay)
        process.terminate()
        with anyio.fail_after(120):
            await process.wait()
        await process.aclose()

        assert _left_behind(environ) == []
