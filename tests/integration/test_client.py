"""corral.Client, against a real server and a stock arq worker."""

from __future__ import annotations

import socket
import traceback

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from arq.connections import ArqRedis
from arq.worker import Worker
from support.serving import SOON_S

from corral import (
    Client,
    CorralError,
    ErrClientNotConfigured,
    ErrDaemonUnavailable,
    ErrInvalidJob,
    ErrJobNotFound,
    ErrSandboxExecutionFailed,
    ErrSecurityViolation,
    Fault,
    Job,
    JobStatus,
    Limits,
    Mount,
    Outcome,
    Policy,
    Result,
    keys,
)

ECHO = Job(argv=("echo", "hello"))
WAIT = Job(argv=("wait",))
HUNDRED_MEGABYTES = 100_000_000


@pytest.fixture
def dead_url() -> str:
    """A URL, with a password, at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"redis://app:s3cret@127.0.0.1:{probe.getsockname()[1]}/0"


async def test_a_job_comes_back_as_the_result_of_its_program(
    client: Client, stock_worker: Worker
) -> None:
    job = await client.submit(ECHO, tenant="acme")

    result = await job.result(timeout=SOON_S)

    assert Result(outcome=Outcome.EXITED, exit_code=0, stdout=b"hello", stdout_bytes=5) == result
    assert result.ok


async def test_many_jobs_at_once_each_get_their_own_result(
    client: Client, stock_worker: Worker
) -> None:
    outputs: dict[int, bytes] = {}

    async def run(number: int) -> None:
        job = await client.submit(Job(argv=("echo", str(number))), tenant="acme")
        outputs[number] = (await job.result(timeout=SOON_S)).stdout

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(run, number)

    assert {number: str(number).encode() for number in range(20)} == outputs


async def test_another_process_finds_a_job_by_its_id(
    client: Client, redis_url: str, stock_worker: Worker
) -> None:
    submitted = await client.submit(ECHO, tenant="acme")

    async with Client(redis_url) as other:
        job = other.job(submitted.id)
        assert (await job.result(timeout=SOON_S)).ok

    assert job.tenant == "acme"


async def test_a_broken_rule_is_raised_with_every_violation(
    client: Client, stock_worker: Worker
) -> None:
    job = await client.submit(
        Job(argv=("echo",), user="root", privileged=True, limits=Limits(pids=0)), tenant="acme"
    )

    with pytest.raises(ErrSecurityViolation) as caught:
        await job.result(timeout=SOON_S)

    assert [violation.rule for violation in caught.value.violations] == [
        "privileged",
        "root_user",
        "limit_exceeds_tenant",
    ]
    assert not caught.value.retryable


async def test_a_fault_says_what_is_known_of_a_retry(client: Client, stock_worker: Worker) -> None:
    job = await client.submit(Job(argv=("break",)), tenant="acme")

    with pytest.raises(ErrSandboxExecutionFailed, match="the sandbox broke") as caught:
        await job.result(timeout=SOON_S)

    assert caught.value.retry_safety == "started"
    assert not caught.value.retryable
    assert caught.value.context == {"step": "wait"}


async def test_the_text_of_a_bug_stays_with_the_worker(
    client: Client, stock_worker: Worker
) -> None:
    job = await client.submit(Job(argv=("bug",)), tenant="acme")

    with pytest.raises(CorralError, match="RuntimeError") as caught:
        await job.result(timeout=SOON_S)

    assert caught.value.code == "internal"
    assert ".ssh" not in str(caught.value)


async def test_a_jobs_status_follows_it_from_queue_to_end(
    client: Client, stock_worker: Worker, begun: anyio.Event
) -> None:
    running = await client.submit(WAIT, tenant="acme")
    with anyio.fail_after(SOON_S):
        await begun.wait()
    queued = await client.submit(ECHO, tenant="acme")

    assert await running.status() == JobStatus.RUNNING
    assert await queued.status() == JobStatus.QUEUED

    await running.cancel(timeout=SOON_S)
    await queued.result(timeout=SOON_S)

    assert await running.status() == JobStatus.FINISHED
    assert await queued.status() == JobStatus.FINISHED


async def test_a_job_for_later_is_deferred(client: Client, redis_client: ArqRedis) -> None:
    job = await client.submit(ECHO, tenant="acme")
    await redis_client.zincrby(keys.queue("acme"), 60_000, job.id)

    assert await job.status() == JobStatus.DEFERRED


async def test_a_result_that_takes_longer_than_the_callers_time_is_a_timeout_and_the_job_goes_on(
    client: Client, stock_worker: Worker, begun: anyio.Event
) -> None:
    job = await client.submit(WAIT, tenant="acme")

    with pytest.raises(TimeoutError):
        await job.result(timeout=0.05)

    with anyio.fail_after(SOON_S):
        await begun.wait()
    assert await job.status() == JobStatus.RUNNING


async def test_cancelling_a_running_job_keeps_what_it_wrote(
    client: Client, redis_client: ArqRedis, stock_worker: Worker, begun: anyio.Event
) -> None:
    job = await client.submit(WAIT, tenant="acme")
    with anyio.fail_after(SOON_S):
        await begun.wait()

    assert await job.cancel(timeout=SOON_S)

    result = await job.result(timeout=SOON_S)
    assert (result.outcome, result.stdout) == (Outcome.CANCELLED, b"partial")
    assert await job.cancel(timeout=SOON_S), "a second cancel tells the same"
    assert await redis_client.zrange(keys.ABORT, 0, -1) == []


async def test_a_queued_job_that_is_cancelled_has_ended_at_once_and_never_starts(
    client: Client, redis_client: ArqRedis, stock_worker: Worker, begun: anyio.Event
) -> None:
    running = await client.submit(WAIT, tenant="acme")
    with anyio.fail_after(SOON_S):
        await begun.wait()
    queued = await client.submit(ECHO, tenant="acme")

    assert await queued.cancel(timeout=SOON_S)
    assert Result(outcome=Outcome.CANCELLED) == await queued.result(timeout=SOON_S)
    assert await queued.cancel(timeout=SOON_S), "a second cancel tells the same"
    await running.cancel(timeout=SOON_S)

    assert await redis_client.zrange(keys.ABORT, 0, -1) == []


@pytest.mark.parametrize("program", ["echo", "break"])
async def test_cancelling_a_job_that_has_ended_by_itself_is_false(
    client: Client, redis_client: ArqRedis, stock_worker: Worker, program: str
) -> None:
    job = await client.submit(Job(argv=(program,)), tenant="acme")
    while await job.status() is not JobStatus.FINISHED:
        await anyio.sleep(0.01)

    assert not await job.cancel(timeout=SOON_S)
    assert await redis_client.zrange(keys.ABORT, 0, -1) == []


async def test_a_cancel_that_cannot_reach_redis_does_not_claim_that_the_job_ended(
    dead_url: str,
) -> None:
    async with Client(dead_url) as client:
        with pytest.raises(ErrDaemonUnavailable):
            await client.job("acme:1").cancel()


async def test_an_unknown_job_is_not_found_and_leaves_no_trace(
    client: Client, redis_client: ArqRedis
) -> None:
    job = client.job("acme:0195c0de")

    with pytest.raises(ErrJobNotFound, match="acme:0195c0de") as caught:
        await job.result()
    with pytest.raises(ErrJobNotFound):
        await job.status()
    with pytest.raises(ErrJobNotFound):
        await job.cancel()

    assert caught.value.context == {"job_id": "acme:0195c0de"}
    assert await redis_client.keys() == []


@pytest.mark.parametrize(
    "tenant", ["", "../x", "a/b", "a:b", "Acme", "-acme", "a b", "acme\n", "é", "*", "a" * 64]
)
async def test_a_tenants_name_is_checked_before_it_becomes_a_key(
    dead_url: str, tenant: str
) -> None:
    async with Client(dead_url) as client:
        with pytest.raises(ErrInvalidJob) as caught:
            await client.submit(ECHO, tenant=tenant)

    assert caught.value.path == "$.tenant"


@pytest.mark.parametrize("job_id", ["", "acme", "acme:", ":1", "acme:a:b", "../x:1", "acme:1\n"])
async def test_a_malformed_id_names_no_job(dead_url: str, job_id: str) -> None:
    async with Client(dead_url) as client:
        with pytest.raises(ErrInvalidJob) as caught:
            client.job(job_id)

    assert caught.value.path == "$.id"


async def test_a_hundred_megabytes_are_refused_before_anything_is_sent(dead_url: str) -> None:
    job = Job(argv=("echo",), labels={"note": "x" * HUNDRED_MEGABYTES})

    async with Client(dead_url) as client:
        with pytest.raises(ErrInvalidJob, match="100000"):
            await client.submit(job, tenant="acme")


async def test_a_malformed_job_is_refused_before_anything_is_sent(dead_url: str) -> None:
    async with Client(dead_url) as client:
        with pytest.raises(ErrInvalidJob) as caught:
            await client.submit(Job(argv=("echo",), limits=Limits(wall_s=-1)), tenant="acme")

    assert caught.value.path == "$.limits.wall_s"


async def test_the_clients_own_policy_refuses_before_anything_is_sent(dead_url: str) -> None:
    job = Job(argv=("echo",), mounts=(Mount(source="/", target="/host"),))

    async with Client(dead_url, policy=Policy()) as client:
        with pytest.raises(ErrSecurityViolation):
            await client.submit(job, tenant="acme")


async def test_a_submitted_job_makes_its_tenant_known(
    client: Client, redis_client: ArqRedis
) -> None:
    await client.submit(ECHO, tenant="acme")
    await client.submit(ECHO)

    tenants = {name async for name in redis_client.sscan_iter(keys.TENANTS)}
    assert {b"acme", b"default"} == tenants


async def test_a_server_that_answers_is_pinged(client: Client) -> None:
    await client.ping()


async def test_a_server_that_is_not_running_is_named_without_the_password(dead_url: str) -> None:
    async with Client(dead_url) as client:
        with pytest.raises(ErrDaemonUnavailable, match=r"127\.0\.0\.1") as caught:
            await client.submit(ECHO, tenant="acme")

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.retryable, "nothing was sent"


async def test_a_missing_unix_socket_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with Client("unix:///nowhere/redis.sock") as client:
        with pytest.raises(ErrDaemonUnavailable, match=r"/nowhere/redis\.sock"):
            await client.ping()


async def test_a_connection_lost_while_a_job_is_queued_leaves_it_open_whether_it_was() -> None:
    async def answer_until_the_job(stream: SocketStream) -> None:
        async with stream:
            async for data in stream:
                if b"EVALSHA" in data:
                    return
                await stream.send(b"+PONG\r\n" * data.count(b"*"))

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer_until_the_job)
        port = listener.extra(SocketAttribute.local_port)
        async with Client(f"redis://127.0.0.1:{port}/0") as client:
            with pytest.raises(ErrDaemonUnavailable) as caught:
                await client.submit(ECHO, tenant="acme")
        tasks.cancel_scope.cancel()

    assert caught.value.retry_safety == "unknown"
    assert not caught.value.retryable


async def test_a_server_that_accepts_and_never_answers_is_unavailable() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        async with Client(f"redis://127.0.0.1:{port}/0") as client:
            client._redis.connection_pool.connection_kwargs["socket_timeout"] = 0.05
            with pytest.raises(ErrDaemonUnavailable, match="TimeoutError"):
                await client.ping()


async def test_a_command_that_redis_refuses_is_a_fault(
    client: Client, redis_client: ArqRedis
) -> None:
    await redis_client.set(keys.TENANTS, "not a set")

    with pytest.raises(Fault, match="WRONGTYPE"):
        await client.submit(ECHO, tenant="acme")


def test_a_client_without_a_url_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL", raising=False)

    with pytest.raises(ErrClientNotConfigured, match="CORRAL_REDIS_URL"):
        Client()


async def test_a_client_finds_its_url_in_the_environment(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_REDIS_URL", redis_url)

    async with Client() as client:
        await client.ping()


@pytest.mark.parametrize(
    "url", ["http://app:s3cret@host", "app:s3cret@host", "redis://app:@host:s3cret/0"]
)
def test_a_malformed_url_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ErrClientNotConfigured, match="rediss://") as caught:
        Client(url)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
