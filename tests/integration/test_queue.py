"""The consumer with corral's client and with stock arq's, on real servers."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import anyio
import arq
import arq.jobs
import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import JobStatus

import corral
from corral import (
    Client,
    ErrInvalidJob,
    ErrJobNotFound,
    ErrQuotaExceeded,
    ErrSecurityViolation,
    ErrWorkerLost,
    Fault,
    Job,
    JobCancelled,
    Outcome,
    Policy,
    Result,
    codec,
    keys,
)
from corral_worker.executor.executor import Attempt
from corral_worker.executor.null import NullExecutor
from corral_worker.queue.commits import Keep
from corral_worker.queue.consumer import Consumer
from corral_worker.sandbox.stop import Stop

QUEUE = "arq:queue:acme"
ECHO = Job(argv=("echo", "hello"))
SLEEP = Job(argv=("sleep", "60"))
NAP = Job(argv=("sleep", "0.05"))
SOON_S = 30


class Watched(NullExecutor):
    """Notes what ran, and refuses what the default policy refuses."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running = 0
        self.most_running = 0
        self.began = anyio.Event()

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        Policy().enforce(attempt.job)
        self.started.append(attempt.job_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.began.set()
        try:
            return await super().execute(attempt, stop)
        finally:
            self.running -= 1


Serving = Callable[..., AbstractAsyncContextManager[Consumer]]


@pytest.fixture
async def executor() -> Watched:
    return Watched()


@pytest.fixture
def serving(redis_client: ArqRedis, executor: Watched) -> Serving:
    """Starts a consumer; at the end it is cancelled, not drained."""

    @asynccontextmanager
    async def serve(
        *, slots: int = 4, lease_s: float = 10.0, drain_s: float | None = None
    ) -> AsyncIterator[Consumer]:
        async with anyio.create_task_group() as tasks:
            consumer = Consumer(
                redis=redis_client,
                executor=executor,
                tenants={"acme"},
                slots=slots,
                lease_s=lease_s,
                keep=Keep(result_s=60),
            )
            tasks.start_soon(consumer.run)
            try:
                yield consumer
                if drain_s is not None:
                    await consumer.drain(drain_s)
            finally:
                tasks.cancel_scope.cancel()

    return serve


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with Client(redis_url) as client:
        yield client


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A pool of stock arq, with corral's pair of serializers."""
    pool = await arq.create_pool(
        RedisSettings.from_dsn(redis_url),
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
    )
    yield pool
    await pool.aclose(close_connection_pool=True)


async def _enqueue(pool: ArqRedis, job: object, job_id: str = "acme:1") -> arq.jobs.Job:
    enqueued = await pool.enqueue_job("execute", job, _job_id=job_id, _queue_name=QUEUE)
    assert enqueued is not None
    return enqueued


async def _until(condition: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    with anyio.fail_after(within_s):
        while not await condition():
            await anyio.sleep(0.01)


async def _nothing_is_left(redis: ArqRedis) -> bool:
    """Whether only results, and what is kept of tenants, are left."""
    left = await redis.keys()
    kept = (
        b"arq:result:",
        b"corral:results:",
        b"corral:claim:",
        b"corral:vt",
        b"corral:estimate",
        b"corral:clock",
        b"corral:epoch",
        b"corral:quiet",
        b"corral:tenants",
        b"corral:sweep",
        b"corral:workers",
        b"corral:wake",
        b"corral:defaults",
        b"corral:tenant:",
    )
    return not [key for key in left if not key.startswith(kept)]


# Stock arq.


async def test_a_job_of_stock_arq_is_found_within_half_a_second_and_its_result_is_arqs(
    pool: ArqRedis, serving: Serving
) -> None:
    async with serving():
        await _until(lambda: _is_member(pool, keys.QUIET, "acme"))
        began = time.monotonic()
        job = await _enqueue(pool, ECHO)
        result = await job.result(timeout=5, poll_delay=0.01)
        took = time.monotonic() - began
        info = await job.result_info()

    assert (result.outcome, result.stdout) == (Outcome.EXITED, b"hello")
    assert took < 0.6
    assert info is not None
    assert (info.function, info.success, info.queue_name, info.job_id, info.job_try) == (
        *("execute", True, QUEUE, "acme:1", 1),
    )
    assert info.enqueue_time <= info.start_time <= info.finish_time
    assert await _nothing_is_left(pool)


async def _is_member(redis: ArqRedis, key: str, member: str) -> bool:
    return bool(await cast("Awaitable[int]", redis.sismember(key, member)))


async def test_a_stock_arq_job_of_a_tenant_nobody_knows_is_found_too(
    pool: ArqRedis, serving: Serving
) -> None:
    async with serving():
        for tenant in ("nobody-knows", "nor-this-one"):
            job = await pool.enqueue_job(
                "execute", ECHO, _job_id=f"{tenant}:1", _queue_name=f"arq:queue:{tenant}"
            )
            assert job is not None
            assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_stock_arq_sees_status_and_definition(
    pool: ArqRedis, serving: Serving, executor: Watched
) -> None:
    async with serving(slots=1):
        running = await _enqueue(pool, SLEEP, "acme:1")
        await executor.began.wait()
        queued = await _enqueue(pool, ECHO, "acme:2")

        assert JobStatus.in_progress == await running.status()
        assert JobStatus.queued == await queued.status()
        info = await running.info()
        assert info is not None
        assert (info.function, info.args) == ("execute", (SLEEP,))


async def test_stock_arq_aborts_a_running_job(
    pool: ArqRedis, serving: Serving, executor: Watched
) -> None:
    async with serving():
        job = await _enqueue(pool, SLEEP)
        await executor.began.wait()

        assert await job.abort(timeout=5, poll_delay=0.01)
        with pytest.raises(JobCancelled):
            await job.result(timeout=1)

    assert await _nothing_is_left(pool)


async def test_stock_arq_aborts_a_queued_job_which_never_starts(
    pool: ArqRedis, serving: Serving, executor: Watched
) -> None:
    async with serving(slots=1):
        await _enqueue(pool, SLEEP, "acme:1")
        await executor.began.wait()
        job = await _enqueue(pool, ECHO, "acme:2")

        assert await job.abort(timeout=5, poll_delay=0.01)

    assert executor.started == ["acme:1"]


async def test_an_abort_of_an_unknown_job_does_not_hit_a_later_one_of_its_id(
    pool: ArqRedis, serving: Serving
) -> None:
    async with serving():
        assert not await arq.jobs.Job("acme:1", pool, QUEUE, codec.deserialize).abort()

        async def forgotten() -> bool:
            return not await pool.zcard(keys.ABORT)

        await _until(forgotten)
        job = await _enqueue(pool, ECHO)
        assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_stock_arq_gets_a_typed_rejection(pool: ArqRedis, serving: Serving) -> None:
    async with serving():
        job = await _enqueue(pool, Job(argv=("echo",), network="host"))

        with pytest.raises(ErrSecurityViolation) as caught:
            await job.result(timeout=5, poll_delay=0.01)

    assert [violation.rule for violation in caught.value.violations] == ["host_network"]


async def test_stock_arqs_own_ids_serve_too(pool: ArqRedis, serving: Serving) -> None:
    async with serving():
        job = await pool.enqueue_job("execute", ECHO, _queue_name=QUEUE)
        assert job is not None

        assert (await job.result(timeout=5, poll_delay=0.01)).ok


async def test_a_worker_whose_clock_is_two_seconds_off_serves_at_once(
    client: Client, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    for skew in (-2_000_000_000, 2_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda skew=skew: real() + skew)
        async with serving():
            job = await client.submit(Job(argv=("echo",), start_within_s=1.0), tenant="acme")
            result = await job.result(timeout=1)

            assert result.outcome is Outcome.EXITED


# corral's client.


async def test_a_job_comes_back_as_its_result(client: Client, serving: Serving) -> None:
    async with serving():
        job = await client.submit(ECHO, tenant="acme")

        assert (await job.result(timeout=5)).stdout == b"hello"


async def test_a_job_for_later_starts_then(
    client: Client, serving: Serving, executor: Watched
) -> None:
    async with serving():
        began = time.monotonic()
        job = await client.submit(ECHO, tenant="acme", delay_s=0.3)
        assert await job.status() is corral.JobStatus.DEFERRED
        await job.result(timeout=5)
        assert 0.3 <= time.monotonic() - began < 0.6

        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)
        job = await client.submit(ECHO, tenant="acme", start_at=at)
        await job.result(timeout=5)
        assert dt.datetime.now(dt.UTC) >= at


async def test_a_job_that_could_not_start_in_time_expires(
    client: Client, serving: Serving, executor: Watched
) -> None:
    async with serving(slots=1):
        await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        job = await client.submit(Job(argv=("echo",), start_within_s=0.1), tenant="acme")

        assert (await job.result(timeout=3)).outcome is Outcome.EXPIRED


async def test_the_same_idempotency_key_gives_the_same_job(
    client: Client, serving: Serving, executor: Watched
) -> None:
    async with serving():
        first = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        again = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")
        other = await client.submit(ECHO, tenant="blue", idempotency_key="order-1")
        with pytest.raises(ErrInvalidJob) as caught:
            await client.submit(NAP, tenant="acme", idempotency_key="order-1")
        await first.result(timeout=5)
        await other.result(timeout=5)
        later = await client.submit(ECHO, tenant="acme", idempotency_key="order-1")

    assert first.id == again.id == later.id
    assert caught.value.path == "$.idempotency_key"
    assert sorted([first.id, other.id]) == sorted(executor.started)


async def test_many_jobs_are_submitted_at_once(client: Client, serving: Serving) -> None:
    async with serving(slots=16):
        jobs = await client.submit_many(
            [Job(argv=("echo", str(number))) for number in range(100)], tenant="acme"
        )
        outputs = [(await job.result(timeout=10)).stdout for job in jobs]

    assert outputs == [str(number).encode() for number in range(100)]


async def test_a_tenant_at_its_depth_is_told_how_long_to_wait_and_nothing_is_queued(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"depth": 3})
    )

    with pytest.raises(ErrQuotaExceeded, match="acme has 3 jobs") as caught:
        await client.submit_many([ECHO] * 4, tenant="acme")

    assert caught.value.retry_after_s is not None
    assert caught.value.retryable
    assert 0 < caught.value.retry_after_s <= 60
    assert caught.value.context["quota"] == "depth"
    assert await redis_client.exists(keys.queue("acme")) == 0


async def test_a_job_beyond_the_payload_cap_is_refused_for_good(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast(
        "Awaitable[int]",
        redis_client.hset(keys.tenant_settings("acme"), mapping={"payload_bytes": 1000}),
    )

    with pytest.raises(ErrQuotaExceeded) as caught:
        await client.submit(Job(argv=("cat",), stdin=b"x" * 1000), tenant="acme")

    assert caught.value.retry_after_s is None
    assert not caught.value.retryable


async def test_where_unknown_tenants_are_closed_out_only_known_ones_submit(
    client: Client, redis_client: ArqRedis
) -> None:
    await cast("Awaitable[int]", redis_client.hset(keys.DEFAULTS, mapping={"unknown": "closed"}))
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"weight": 1})
    )

    await client.submit(ECHO, tenant="acme")
    with pytest.raises(ErrQuotaExceeded, match="blue is not known"):
        await client.submit(ECHO, tenant="blue")


async def test_a_suspended_tenants_jobs_wait(
    client: Client, redis_client: ArqRedis, serving: Serving, executor: Watched
) -> None:
    await cast(
        "Awaitable[int]", redis_client.hset(keys.tenant_settings("acme"), mapping={"suspended": 1})
    )
    async with serving():
        await client.submit(ECHO, tenant="acme")
        other = await client.submit(ECHO, tenant="blue")
        await other.result(timeout=5)

    assert [other.id] == executor.started


async def test_a_queued_job_is_cancelled_exactly(
    client: Client, redis_client: ArqRedis, serving: Serving, executor: Watched
) -> None:
    async with serving(slots=1):
        running = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        queued = await client.submit(ECHO, tenant="acme")

        assert await queued.cancel(timeout=1)
        assert Result(outcome=Outcome.CANCELLED) == await queued.result(timeout=1)
        assert await running.cancel(timeout=1)

    assert [running.id] == executor.started
    assert await _nothing_is_left(redis_client)


async def test_a_running_job_is_cancelled_at_once(
    client: Client, serving: Serving, executor: Watched
) -> None:
    async with serving():
        job = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
        began = time.monotonic()

        assert await job.cancel(timeout=5)
        assert time.monotonic() - began < 0.5
        assert await job.cancel(timeout=5), "a second cancel tells the same"


async def test_a_finished_jobs_cancel_is_false_and_an_unknown_ones_leaves_no_trace(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    async with serving():
        job = await client.submit(ECHO, tenant="acme")
        await job.result(timeout=5)
        assert not await job.cancel(timeout=5)

        with pytest.raises(ErrJobNotFound):
            await client.job("acme:nobody").cancel()

    assert await _nothing_is_left(redis_client)


async def test_results_are_a_queue_of_their_own(client: Client, serving: Serving) -> None:
    async with serving():
        jobs = await client.submit_many(
            [Job(argv=("echo", str(number))) for number in range(5)], tenant="acme"
        )
        rejected = await client.submit(Job(argv=("echo",), user="root"), tenant="acme")
        seen: dict[str, bytes | str] = {}
        with anyio.fail_after(10):
            async for finished in client.results("acme", group="web", consumer="one"):
                try:
                    seen[finished.job_id] = (await finished.result()).stdout
                except ErrSecurityViolation as error:
                    seen[finished.job_id] = error.code
                await finished.ack()
                if len(seen) == 6:
                    break

    expected: dict[str, bytes | str] = {
        job.id: str(number).encode() for number, job in enumerate(jobs)
    }
    assert expected | {rejected.id: "security_violation"} == seen


async def test_a_result_that_was_not_acknowledged_comes_again(
    client: Client, serving: Serving
) -> None:
    async with serving():
        job = await client.submit(ECHO, tenant="acme")
        for _ in range(2):
            with anyio.fail_after(10):
                async for finished in client.results("acme", consumer="one"):
                    assert finished.job_id == job.id
                    break


# Caps, order, drain.


async def test_two_workers_keep_one_cap(
    client: Client, redis_client: ArqRedis, serving: Serving, executor: Watched
) -> None:
    await cast(
        "Awaitable[int]",
        redis_client.hset(keys.tenant_settings("acme"), mapping={"concurrency": 1}),
    )
    async with serving(), serving():
        jobs = await client.submit_many([NAP] * 10, tenant="acme")
        for job in jobs:
            assert (await job.result(timeout=10)).ok

    assert executor.most_running == 1


async def test_a_tenant_with_many_jobs_does_not_hold_up_newcomers(
    client: Client, serving: Serving, executor: Watched
) -> None:
    await client.submit_many([NAP] * 500, tenant="acme")
    async with serving(slots=4):
        while len(executor.started) < 20:
            await anyio.sleep(0.01)
        jobs = [await client.submit(ECHO, tenant=f"new-{number}") for number in range(10)]
        before = len(executor.started)
        for job in jobs:
            await job.result(timeout=5)
        last = max(executor.started.index(job.id) for job in jobs)

    assert last - before < 10 + 4 + 4, "after the newcomers' own and one a slot of the big one"


async def test_a_drained_worker_hands_back_what_its_grace_does_not_suffice_for(
    client: Client, redis_client: ArqRedis, serving: Serving, executor: Watched
) -> None:
    async with serving(slots=1, drain_s=0.05):
        once = await client.submit(SLEEP, tenant="acme")
        await executor.began.wait()
    with pytest.raises(ErrWorkerLost) as caught:
        await once.result(timeout=1)
    assert caught.value.retry_safety == "started"

    executor.began = anyio.Event()
    async with serving(slots=1, drain_s=0.05):
        again = await client.submit(Job(argv=("sleep", "0.3"), attempts=2), tenant="acme")
        await executor.began.wait()
    assert await again.status() is corral.JobStatus.QUEUED

    async with serving(slots=1):
        assert (await again.result(timeout=5)).ok
    assert await _nothing_is_left(redis_client)


async def test_a_draining_worker_takes_no_more_jobs(
    client: Client, serving: Serving, executor: Watched
) -> None:
    async with serving() as consumer:
        await (await client.submit(ECHO, tenant="acme")).result(timeout=5)
        await consumer.drain(1.0)
        job = await client.submit(ECHO, tenant="acme")
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.3)

    async with serving():
        assert (await job.result(timeout=5)).ok


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        pytest.param(b"\x80\x04garbage", "$", id="pickle"),
        pytest.param(b"\x00\xffgarbage", "$", id="garbage"),
        pytest.param(b"[" * 100_000, "$", id="deep"),
        pytest.param(b'{"v":1,"f":"other","et":1,"a":[{"argv":["x"]}]}', "$.f", id="function"),
        pytest.param(b'{"v":1,"f":"execute","et":1,"a":[{"argv":[]}]}', "$.argv", id="empty argv"),
        pytest.param(b'{"v":9}', "$.v", id="newer version"),
        pytest.param(b"x" * (codec.MAX_PAYLOAD_BYTES + 1), "$", id="too large"),
    ],
)
async def test_a_poisoned_payload_fails_alone_and_is_kept_aside(
    client: Client, redis_client: ArqRedis, serving: Serving, payload: bytes, path: str
) -> None:
    await redis_client.set(keys.job("acme:poison"), payload)
    await redis_client.zadd(QUEUE, {"acme:poison": 1})
    async with serving():
        with pytest.raises(ErrInvalidJob) as caught:
            await client.job("acme:poison").result(timeout=5)
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok

    assert path == caught.value.path
    assert await redis_client.get(keys.dead("acme:poison")) == payload
    assert await redis_client.zrange(keys.DEAD, 0, -1) == [b"acme:poison"]


async def test_a_bug_of_the_executor_ends_its_job_alone_and_tells_nothing_of_the_host(
    client: Client,
    serving: Serving,
    executor: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def crash(attempt: Attempt, stop: Stop) -> Result:
        raise LookupError("/root/.ssh is readable")

    async with serving():
        with monkeypatch.context() as patch:
            patch.setattr(executor, "execute", crash)
            with pytest.raises(Fault, match="LookupError") as caught:
                await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok

    assert "/root" not in str(caught.value)
    assert (caught.value.retry_safety, caught.value.retryable) == ("unknown", False)


async def test_a_job_due_at_no_time_at_all_stops_no_worker(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    for score in (math.inf, -math.inf, 1e300):
        await redis_client.zadd(QUEUE, {f"acme:{score}": score})
    async with serving():
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=SOON_S)).ok
        with pytest.raises(ErrJobNotFound):
            await client.job("acme:unknown").result(timeout=SOON_S)


async def test_names_that_are_no_text_stop_no_worker(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    payload = codec.serialize(
        {"t": None, "f": keys.FUNCTION, "a": (ECHO,), "k": {}, "et": 1_700_000_000_000}
    )
    strange_id, strange_tenant = b"\xff\xfe", b"\xfd/../x"
    await cast("Awaitable[int]", redis_client.sadd(keys.TENANTS, strange_tenant, b"acme"))
    for queue in (QUEUE.encode(), b"arq:queue:" + strange_tenant):
        await redis_client.set(b"arq:job:" + strange_id, payload)
        await redis_client.zadd(queue, {strange_id: 1})
        async with serving():
            with anyio.fail_after(10):
                while not await redis_client.exists(b"arq:result:" + strange_id):
                    await anyio.sleep(0.02)
            assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok
        await redis_client.delete(b"arq:result:" + strange_id)


async def test_a_job_whose_payload_is_gone_expires(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    await redis_client.zadd(QUEUE, {"acme:gone": 1})
    async with serving():
        result = await client.job("acme:gone").result(timeout=5)

    assert result.outcome is Outcome.EXPIRED


async def test_a_lock_without_end_does_not_loop_a_claim(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    await redis_client.set(keys.in_progress("acme:stuck"), b"1")
    await redis_client.zadd(QUEUE, {"acme:stuck": 1})
    async with serving():
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok


async def test_one_listener_serves_many_waits_and_survives_a_killed_connection(
    client: Client, redis_client: ArqRedis, serving: Serving
) -> None:
    async with serving():
        await (await client.submit(ECHO, tenant="acme")).result(timeout=5)
        job = await client.submit(Job(argv=("sleep", "0.5")), tenant="acme")
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(job.result(timeout=5)) for _ in range(3)]
            await anyio.sleep(0.1)
            await redis_client.client_kill_filter(_type="pubsub", skipme=True)
        assert [wait.result().ok for wait in waits] == [True] * 3
        assert (await (await client.submit(ECHO, tenant="acme")).result(timeout=5)).ok
