"""What becomes of jobs when a worker is told to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import anyio
import anyio.to_thread
import msgspec
import pytest
from support.workers import (
    HELLO,
    SLEEPER,
    left_behind,
    running_worker,
    until_running,
    until_started,
)

from corral import Client, ErrWorkerLost, Job, JobStatus

pytestmark = pytest.mark.live


async def test_on_sigterm_running_jobs_finish_and_queued_ones_stay(
    environ: dict[str, str], client: Client
) -> None:
    async with running_worker({**environ, "CORRAL_SLOTS": "1"}) as worker:
        running = await client.submit(Job(argv=("sh", "-c", "sleep 2; echo done"), image="base"))
        await until_running(running)
        queued = await client.submit(HELLO)

        assert await worker.stopped() == 0
    assert (await running.result(timeout=1)).stdout == b"done\n"
    assert await queued.status() is JobStatus.QUEUED


@pytest.mark.usefixtures("_cold")
async def test_a_second_signal_ends_the_grace(environ: dict[str, str], client: Client) -> None:
    async with running_worker({**environ, "CORRAL_DRAIN_GRACE_S": "3600"}) as worker:
        job = await client.submit(SLEEPER)
        await until_started(environ, 1)
        worker.process.send_signal(signal.SIGTERM)
        await worker.logged("worker.draining")

        assert await worker.stopped() == 0
    with pytest.raises(ErrWorkerLost):
        await job.result(timeout=1)


@pytest.mark.usefixtures("_cold")
async def test_after_the_grace_a_started_job_is_lost_unless_it_allows_another_attempt(
    environ: dict[str, str], client: Client
) -> None:
    async with running_worker({**environ, "CORRAL_DRAIN_GRACE_S": "0"}) as worker:
        once = await client.submit(SLEEPER)
        twice = await client.submit(msgspec.structs.replace(SLEEPER, attempts=2))
        await until_started(environ, 2)

        assert await worker.stopped() == 0
    with pytest.raises(ErrWorkerLost) as caught:
        await once.result(timeout=1)
    assert caught.value.retry_safety == "started"
    assert await twice.status() is JobStatus.QUEUED


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

        assert left_behind(environ) == []
