"""arq as it comes: its client and its worker, with nothing of corral's but the codec."""

from __future__ import annotations

import asyncio
import inspect
import pickle  # noqa: TID251 - what an arq client without corral's codec would send

import anyio
import arq
import arq.constants
import arq.jobs
import msgspec
import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus
from arq.worker import JobExecutionFailed, Worker
from support.serving import SOON_S

from corral import (
    Client,
    CorralError,
    ErrInvalidJob,
    ErrSecurityViolation,
    Job,
    JobCancelled,
    Outcome,
    Result,
    codec,
    keys,
)

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
WAIT = Job(argv=("wait",))


async def _enqueue(pool: ArqRedis, job: object, job_id: str = "acme:1") -> arq.jobs.Job:
    enqueued = await pool.enqueue_job("execute", job, _job_id=job_id, _queue_name=QUEUE)
    assert enqueued is not None
    return enqueued


async def test_arqs_client_gets_the_result(pool: ArqRedis, stock_worker: Worker) -> None:
    job = await _enqueue(pool, ECHO)

    assert Result(
        outcome=Outcome.EXITED, exit_code=0, stdout=b"hello", stdout_bytes=5
    ) == await job.result(timeout=5, poll_delay=0.02)

    info = await job.result_info()
    assert info is not None
    assert (
        info.function,
        info.success,
        info.queue_name,
        info.job_id,
        info.job_try,
    ) == ("execute", True, QUEUE, "acme:1", 1)
    assert info.args == (), "a result never holds the job"
    assert info.enqueue_time <= info.start_time <= info.finish_time


async def test_arqs_client_may_send_a_plain_dict(pool: ArqRedis, stock_worker: Worker) -> None:
    job = await _enqueue(pool, {"argv": ["echo", "plain"]})

    assert (await job.result(timeout=5, poll_delay=0.02)).stdout == b"plain"


async def test_arqs_client_is_refused_a_job_that_no_worker_could_read(pool: ArqRedis) -> None:
    with pytest.raises(arq.jobs.SerializationError) as caught:
        await _enqueue(pool, {"argv": ["echo"], "network": 5})

    assert isinstance(caught.value.__cause__, ErrInvalidJob)
    assert caught.value.__cause__.path == "$.network"


async def test_arqs_client_sees_a_jobs_status_and_definition(
    pool: ArqRedis, stock_worker: Worker, begun: anyio.Event
) -> None:
    running = await _enqueue(pool, WAIT, "acme:1")
    with anyio.fail_after(SOON_S):
        await begun.wait()
    queued = await _enqueue(pool, ECHO, "acme:2")

    assert JobStatus.in_progress == await running.status()
    assert JobStatus.queued == await queued.status()
    info = await queued.info()
    assert info is not None
    assert (info.function, info.args, info.kwargs) == ("execute", (ECHO,), {})


async def test_arqs_client_aborts_a_running_job(
    pool: ArqRedis, stock_worker: Worker, begun: anyio.Event
) -> None:
    job = await _enqueue(pool, WAIT)
    with anyio.fail_after(SOON_S):
        await begun.wait()

    assert await job.abort(timeout=5, poll_delay=0.02)

    with pytest.raises(asyncio.CancelledError) as caught:
        await job.result(timeout=SOON_S)
    assert isinstance(caught.value, JobCancelled)
    assert caught.value.result.stdout == b"partial"
    assert JobStatus.complete == await job.status()


async def test_arqs_client_gets_a_typed_rejection(pool: ArqRedis, stock_worker: Worker) -> None:
    job = await _enqueue(pool, Job(argv=("echo",), network="host"))

    with pytest.raises(ErrSecurityViolation) as caught:
        await job.result(timeout=5, poll_delay=0.02)

    assert [violation.rule for violation in caught.value.violations] == ["host_network"]


async def test_a_job_of_arqs_client_is_found_by_corrals_and_the_other_way_round(
    pool: ArqRedis, redis_url: str, stock_worker: Worker
) -> None:
    async with Client(redis_url) as client:
        await _enqueue(pool, ECHO)
        assert (await client.job("acme:1").result(timeout=SOON_S)).ok

        submitted = await client.submit(ECHO, tenant="acme")
        job = arq.jobs.Job(submitted.id, pool, QUEUE, codec.deserialize)
        assert (await job.result(timeout=5, poll_delay=0.02)).ok


def _envelope(**changes: object) -> bytes:
    fields: dict[str, object] = {"v": 1, "f": "execute", "et": 1, "a": [{"argv": ["echo"]}]}
    return msgspec.json.encode(fields | changes)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        pytest.param(
            pickle.dumps({"t": None, "f": "execute", "a": (), "k": {}, "et": 1}), "$", id="pickle"
        ),
        pytest.param(b"\x00\xffgarbage", "$", id="garbage"),
        pytest.param(b"[" * 100_000, "$", id="deep"),
        pytest.param(_envelope(v=2), "$.v", id="newer version"),
        pytest.param(_envelope(f="shutdown"), "$.f", id="unknown function"),
        pytest.param(_envelope(a=[]), "$.f", id="no argument"),
        pytest.param(_envelope(k={"shell": True}), "$.f", id="keyword argument"),
        pytest.param(_envelope(et=2**62), "$.et", id="time that no calendar has"),
        pytest.param(_envelope(t=-1), "$.t", id="negative try"),
        pytest.param(_envelope(a=[{"argv": []}]), "$.argv", id="empty argv"),
        pytest.param(_envelope(a=[{"argv": ["a\0b"]}]), "$.argv[0]", id="NUL"),
    ],
)
async def test_a_poisoned_payload_fails_alone(
    pool: ArqRedis, redis_url: str, stock_worker: Worker, payload: bytes, path: str
) -> None:
    await pool.set(keys.job("acme:poison"), payload)
    await pool.zadd(QUEUE, {"acme:poison": 1})

    async with Client(redis_url) as client:
        with pytest.raises(ErrInvalidJob) as caught:
            await client.job("acme:poison").result(timeout=SOON_S)
        next_job = await client.submit(ECHO, tenant="acme")
        assert (await next_job.result(timeout=SOON_S)).ok

    assert path == caught.value.path


async def test_a_job_whose_payload_expired_ends_with_an_error(
    pool: ArqRedis, redis_url: str, stock_worker: Worker
) -> None:
    await pool.zadd(QUEUE, {"acme:gone": 1})

    async with Client(redis_url) as client:
        with pytest.raises(CorralError, match="job expired") as caught:
            await client.job("acme:gone").result(timeout=SOON_S)

    assert caught.value.code == "job_execution_failed"


def test_arqs_keys_are_where_they_were() -> None:
    assert {
        "queue": arq.constants.default_queue_name,
        "job": arq.constants.job_key_prefix,
        "in progress": arq.constants.in_progress_key_prefix,
        "result": arq.constants.result_key_prefix,
        "retry": arq.constants.retry_key_prefix,
        "abort": arq.constants.abort_jobs_ss,
    } == {
        "queue": "arq:queue",
        "job": "arq:job:",
        "in progress": "arq:in-progress:",
        "result": "arq:result:",
        "retry": "arq:retry:",
        "abort": "arq:abort",
    }


def test_arqs_worker_takes_what_we_give_it() -> None:
    assert {
        "functions",
        "queue_name",
        "redis_settings",
        "redis_pool",
        "handle_signals",
        "max_jobs",
        "job_timeout",
        "keep_result",
        "poll_delay",
        "max_tries",
        "retry_jobs",
        "allow_abort_jobs",
        "job_serializer",
        "job_deserializer",
        "log_results",
    } <= inspect.signature(Worker).parameters.keys()


def test_arqs_pool_and_jobs_take_what_we_give_them() -> None:
    assert {"job_serializer", "job_deserializer"} <= inspect.signature(ArqRedis).parameters.keys()
    assert {"_job_id", "_queue_name"} <= inspect.signature(ArqRedis.enqueue_job).parameters.keys()
    assert list(inspect.signature(arq.jobs.Job).parameters) == [
        "job_id",
        "redis",
        "_queue_name",
        "_deserializer",
    ]


def test_arq_tells_of_its_own_failures_by_job_execution_failed() -> None:
    assert issubclass(JobExecutionFailed, RuntimeError)


def test_arq_keeps_the_cause_of_a_payload_it_cannot_read() -> None:
    with pytest.raises(arq.jobs.DeserializationError) as caught:
        arq.jobs.deserialize_job_raw(b"garbage", deserializer=codec.deserialize)

    assert isinstance(caught.value.__cause__, ErrInvalidJob)
