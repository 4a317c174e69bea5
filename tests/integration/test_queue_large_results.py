"""Large results share a room in memory until Redis has them."""

from __future__ import annotations

import time

import anyio
import anyio.abc
import pytest
from arq.connections import ArqRedis
from support.null_executor import NullExecutor
from support.serving import SOON_S, serving

from corral import Client, Job, Outcome, Result, codec, keys
from corral.connection import connect
from corral_worker.executor.executor import Attempt
from corral_worker.queue.claims import Claim
from corral_worker.queue.commits import Commits, Keep
from corral_worker.queue.leases import Lease
from corral_worker.queue.service import JobService
from corral_worker.queue.starts import Starts
from corral_worker.sandbox.stop import Stop

LARGE = Job(argv=("large",))
ALL_THE_ROOM = 2**40
_LEASE_S = 2.0


class Large(NullExecutor):
    """Programs called ``large`` have more output than there is room for; others have little."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.read: list[str] = []
        self.may_go_on = anyio.Event()

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        if attempt.job != LARGE:
            return await super().execute(attempt, stop)
        self.ended.append(attempt.job_id)
        assert attempt.room is not None
        await attempt.room(ALL_THE_ROOM)
        self.read.append(attempt.job_id)
        await self.may_go_on.wait()
        return Result(outcome=Outcome.EXITED, exit_code=0, stdout=b"large")


@pytest.fixture
def executor() -> Large:
    return Large()


async def test_a_small_result_overtakes_the_large_ones_that_wait(
    client: Client, redis_client: ArqRedis, executor: Large
) -> None:
    async with serving(redis_client, executor, slots=8):
        large = await client.submit_many([LARGE] * 4, tenant="acme")
        with anyio.fail_after(SOON_S):
            while len(executor.ended) < 4:
                await anyio.sleep(0.01)
        small = await client.submit(Job(argv=("echo", "little")), tenant="acme")
        assert (await small.result(timeout=SOON_S)).stdout == b"little"
        assert len(executor.read) == 1

        executor.may_go_on.set()
        assert [(await job.result(timeout=SOON_S)).stdout for job in large] == [b"large"] * 4


async def test_a_large_result_waits_until_redis_has_the_one_before(
    client: Client, redis_client: ArqRedis, executor: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.may_go_on.set()
    unknown: list[int] = []
    final = Commits.final

    async def counted(self: Commits, lease: Lease, *arguments: object, **options: object) -> object:
        unknown.append(len(executor.read) - len(await redis_client.keys("arq:result:*")))
        return await final(self, lease, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Commits, "final", counted)
    async with serving(redis_client, executor, slots=8):
        for job in await client.submit_many([LARGE] * 8, tenant="acme"):
            await job.result(timeout=SOON_S)

    assert unknown == [1] * 8


async def test_a_worker_that_is_cancelled_waits_for_no_room(
    client: Client, redis_client: ArqRedis, executor: Large
) -> None:
    with anyio.fail_after(SOON_S):
        async with serving(redis_client, executor, slots=4):
            await client.submit_many([LARGE] * 4, tenant="acme")
            while len(executor.ended) < 4:
                await anyio.sleep(0.01)


async def test_a_server_that_hangs_holds_up_those_that_wait_no_longer_than_their_leases(
    executor: Large,
) -> None:
    executor.may_go_on.set()
    sent = bytearray()

    async def hang(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            async for chunk in stream:
                sent.extend(chunk)
                if b"EVALSHA" not in chunk:
                    await stream.send(b"+PONG\r\n" * chunk.count(b"*"))

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, hang)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        redis = connect(f"redis://127.0.0.1:{port}")
        redis.connection_pool.connection_kwargs["socket_timeout"] = 0.2
        commits = Commits(redis, keep=Keep(), lease_s=_LEASE_S)
        service = JobService(executor=executor, starts=Starts(redis), commits=commits)
        tasks.start_soon(commits.run)
        over_at = time.monotonic() + _LEASE_S
        leases = [_lease(f"acme:{number}", over_at) for number in range(8)]
        with anyio.fail_after(SOON_S):
            async with anyio.create_task_group() as jobs:
                for lease in leases:
                    jobs.start_soon(service.serve, lease)
        await redis.aclose(close_connection_pool=True)
        tasks.cancel_scope.cancel()

    first, *others = executor.read
    assert len(others) == 7
    assert first.encode() in sent
    assert not any(other.encode() in sent for other in others)


def _lease(job_id: str, over_at: float) -> Lease:
    payload = codec.serialize({"t": None, "f": keys.FUNCTION, "a": (LARGE,), "k": {}, "et": 1})
    claim = Claim(
        tenant="acme",
        job_id=job_id,
        token=job_id,
        what="run",
        starts=0,
        lost=0,
        queued_s=0.0,
        payload=payload,
        policy=b"",
    )
    return Lease(claim, safe_until=over_at, over_at=over_at)
