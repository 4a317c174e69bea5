"""A worker, and what its host has or lacks."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.workers import (
    HELLO,
    SLEEPER,
    RunningWorker,
    left_behind,
    running_worker,
    started_worker,
    until_started,
)

from corral import Client, ErrGVisorNotAvailable, ErrSandboxCreationFailed, Job, JobStatus, WaitsFor
from corral_worker.sandbox.cgroup import pids_below, remove_below
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_v1 import NEEDED
from corral_worker.sandbox.runsc import find

pytestmark = pytest.mark.live


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
    # runsc makes its own, of the same path, in the hierarchies that corral does not need.
    for mount in {*mounts, *host._hierarchies.values()}:
        remove_below(mount / host.parent.lstrip("/"))


@pytest.mark.usefixtures("_cold")
async def test_a_worker_in_a_delegated_cgroup_keeps_to_it(
    environ: dict[str, str], client: Client, delegated: list[Path], slowness: float
) -> None:
    join = "".join(f"echo $$ >{service}/cgroup.procs; " for service in delegated)
    environ["CORRAL_CGROUP_PARENT"] = "delegated"
    async with started_worker(environ, by=("sh", "-c", f'{join} exec "$@"', "sh")) as worker:
        job = await client.submit(SLEEPER)
        await until_started(environ)
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
    assert left_behind(environ) == []


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


@pytest.fixture
def few_tasks() -> Iterator[Path]:
    """A cgroup of the test's own to limit tasks in."""
    host = CgroupHost.of_this_host("/")
    mount = host._unified if host.version == 2 else host._hierarchies["pids"]
    assert mount is not None
    own = mount / f"corral-test-{os.getpid()}-tasks"
    own.mkdir()
    yield own
    own.rmdir()


async def test_a_worker_that_can_have_no_more_tasks_takes_no_jobs_and_goes_on_by_itself(
    environ: dict[str, str], client: Client, few_tasks: Path, slowness: float
) -> None:
    async with running_worker(environ) as worker:
        (few_tasks / "cgroup.procs").write_text(str(worker.process.pid))
        (few_tasks / "pids.max").write_text("1")
        with anyio.fail_after(60 * slowness):
            await worker.logged("worker.unready")
        waiting = await client.submit(HELLO)
        with pytest.raises(TimeoutError):
            await waiting.result(timeout=1.5)

        (few_tasks / "pids.max").write_text("max")
        assert (await waiting.result(timeout=60 * slowness)).ok

        unready = next(e for e in worker.events() if e["event"] == "worker.unready")
        assert (unready["short_of"], unready["tasks"]) == (["tasks"], 0)


async def test_jobs_that_a_worker_takes_though_it_can_have_no_more_tasks_are_typed_faults(
    environ: dict[str, str], client: Client, state_dir: Path, few_tasks: Path, slowness: float
) -> None:
    config = state_dir / "worker.toml"
    config.write_text("[admission]\ntasks = 0\n")
    own = {**environ, "CORRAL_CONFIG": str(config), "CORRAL_WARM_SANDBOXES": "0"}
    async with running_worker(own) as worker:
        assert (await (await client.submit(HELLO)).result(timeout=60 * slowness)).ok
        (few_tasks / "cgroup.procs").write_text(str(worker.process.pid))
        (few_tasks / "pids.max").write_text("1")

        # No more than are taken together: after the first fault it may take none.
        jobs = await client.submit_many([HELLO] * 2)
        for job in jobs:
            with pytest.raises(ErrSandboxCreationFailed) as caught:
                await job.result(timeout=60 * slowness)
            assert caught.value.retry_safety == "not_started"

        (few_tasks / "pids.max").write_text("max")
        assert (await (await client.submit(HELLO)).result(timeout=60 * slowness)).ok
        assert worker.process.poll() is None


def _sandboxes(state_dir: Path) -> list[Path]:
    return list(state_dir.glob("w-*/b/*"))


async def test_a_worker_that_is_short_of_memory_keeps_no_sandboxes_for_jobs_it_does_not_take(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    config = state_dir / "worker.toml"
    config.write_text(f"[admission]\nmemory_bytes = {2**60}\n")
    async with running_worker({**environ, "CORRAL_CONFIG": str(config)}) as worker:
        await worker.logged("worker.unready")
        waiting = await client.submit(HELLO)
        with pytest.raises(TimeoutError):
            await waiting.result(timeout=1.5)

        with anyio.fail_after(30):
            while _sandboxes(state_dir):
                await anyio.sleep(0.05)


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


async def test_a_host_on_which_no_sandbox_starts_leaves_the_jobs_to_others_until_one_does(
    environ: dict[str, str], client: Client, state_dir: Path, slowness: float
) -> None:
    broken, binary = state_dir / "broken", state_dir / "runsc"
    binary.write_text(f'#!/bin/sh\n[ -e {broken} ] && exit 1\nexec {find(None)} "$@"\n')
    binary.chmod(0o755)
    own = {**environ, "CORRAL_RUNSC_PATH": str(binary), "CORRAL_WARM_SANDBOXES": "0"}
    async with running_worker(own) as worker:
        assert (await (await client.submit(HELLO)).result(timeout=60 * slowness)).ok
        broken.touch()
        with pytest.raises(ErrSandboxCreationFailed) as caught:
            await (await client.submit(HELLO)).result(timeout=60 * slowness)
        assert caught.value.retryable
        with anyio.fail_after(60 * slowness):
            await worker.logged("worker.unready")

        jobs = await client.submit_many([HELLO] * 20)
        with pytest.raises(TimeoutError):
            await jobs[0].result(timeout=1.5)
        broken.unlink()
        for job in jobs:
            assert (await job.result(timeout=60 * slowness)).ok

        unready = next(e for e in worker.events() if e["event"] == "worker.unready")
        assert unready["short_of"] == ["sandboxes"]
        assert "corral doctor" in str(unready["remedy"])


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
