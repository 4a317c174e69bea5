"""What callers get of a worker: by corral's client, and by stock arq."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import anyio
import anyio.to_thread
import arq
import msgspec
import pytest
import redis
from arq.connections import ArqRedis
from support.workers import HELLO, SLEEPER, RunningWorker, running_worker, until_running

from corral import (
    Client,
    ErrImageNotFound,
    ErrInvalidJob,
    ErrProgramNotFound,
    ErrSecurityViolation,
    Job,
    JobCancelled,
    Limits,
    Outcome,
    codec,
    keys,
)

pytestmark = pytest.mark.live


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
    await until_running(submitted)
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
    await until_running(job)

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

    with pytest.raises(ErrImageNotFound) as not_found:
        await unknown_image.result(timeout=30)
    assert not_found.value.context["host"] == socket.gethostname()
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


async def test_the_worker_outlives_a_redis_that_drops_its_connections(
    client: Client, redis_url: str, worker: RunningWorker
) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        for _ in range(3):
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(0.05)

    assert (await (await client.submit(HELLO)).result(timeout=30)).ok
