"""Submitting jobs and getting their results, from a web application."""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, cast

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from corral import codec, keys
from corral.errors import (
    CorralError,
    ErrClientNotConfigured,
    ErrDaemonUnavailable,
    ErrJobNotFound,
    Fault,
    RetrySafety,
)
from corral.job import Job
from corral.policy import Policy
from corral.result import Outcome, Result

REDIS_URL_VARIABLE = "CORRAL_REDIS_URL"
"""Environment variable that names the Redis of a client made without a URL."""

_ANSWER_WITHIN_S = 10.0
_FIRST_LOOK_S = 0.01
_LAST_LOOK_S = 0.2


class JobStatus(enum.StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    """Queued, and not to start before a later time."""
    RUNNING = "running"
    """Held by a worker."""
    FINISHED = "finished"
    """Its result, or its error, is there."""


def connect(url: str) -> ArqRedis:
    """Return arq's Redis client for a ``redis://``, ``rediss://`` or ``unix://`` URL.

    All TLS options of redis-py's URLs work. Nothing is sent before the first
    command.

    Raises:
        ErrClientNotConfigured: the URL is of no known kind.
    """
    try:
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=_ANSWER_WITHIN_S,
            socket_connect_timeout=_ANSWER_WITHIN_S / 2,
            health_check_interval=30,
        )
    except ValueError:
        # redis-py's message may quote the URL, and with it the password.
        raise ErrClientNotConfigured(
            "the Redis URL is not valid: it is to begin with redis://, rediss:// or unix://"
        ) from None
    return ArqRedis(pool, job_serializer=codec.serialize, job_deserializer=codec.deserialize)


async def ping(redis: ArqRedis) -> None:
    """Return if Redis answers.

    Raises:
        ErrDaemonUnavailable: it does not.
    """
    async with _reaching(redis):
        await redis.ping()


class SubmittedJob:
    """A job that was submitted: ask it for its status and result, or cancel it."""

    def __init__(self, redis: ArqRedis, job_id: str) -> None:
        self.id = job_id
        self.tenant = keys.tenant_of(job_id)
        self._redis = redis

    async def result(self, *, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Wait until the job has ended and return how.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            CorralError: the job was rejected, or a fault struck: the typed
                error, as the worker raised it.
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
            TimeoutError: the time was up first. The job goes on.

        Cancelling the call leaves the job alone.
        """
        async with asyncio.timeout(timeout):
            return codec.decode_result(await self._wait())

    async def status(self) -> JobStatus:
        """Return where the job is now.

        Raises:
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
        """
        async with _reaching(self._redis), self._redis.pipeline(transaction=True) as pipe:
            pipe.exists(keys.result(self.id))
            pipe.exists(keys.in_progress(self.id))
            pipe.zscore(keys.queue(self.tenant), self.id)
            pipe.time()
            finished, running, score, (seconds, micros) = await pipe.execute()
        if finished:
            return JobStatus.FINISHED
        if running:
            return JobStatus.RUNNING
        if score is None:
            raise self._unknown()
        late = score > seconds * 1000 + micros / 1000
        return JobStatus.DEFERRED if late else JobStatus.QUEUED

    async def cancel(self, *, timeout: float | None = 30.0) -> bool:  # noqa: ASYNC109
        """Ask for the job's end, and wait until it has ended.

        Returns True if the job ended by this, or an earlier, cancel: then its
        sandbox is dead, and :meth:`result` has the output it wrote until then.
        False if it had ended, or ended just then, by itself.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
            TimeoutError: the time was up first. The request stands.
        """
        if await self.status() is not JobStatus.FINISHED:
            async with _reaching(self._redis, retry_safety="unknown"):
                await self._redis.zadd(keys.ABORT, {self.id: 1})
        try:
            async with asyncio.timeout(timeout):
                ending = await self._wait()
        finally:
            await self._forget_cancel_if_finished()
        try:
            return codec.decode_result(ending).outcome is Outcome.CANCELLED
        except CorralError:
            return False

    async def _forget_cancel_if_finished(self) -> None:
        # arq never drops a request that came too late: it would hit the next
        # job of the same id (python-arq/arq#485).
        async with _reaching(self._redis):
            if await self._redis.exists(keys.result(self.id)):
                await self._redis.zrem(keys.ABORT, self.id)

    async def _wait(self) -> bytes:
        began = asyncio.get_running_loop().time()
        while True:
            async with _reaching(self._redis), self._redis.pipeline(transaction=True) as pipe:
                pipe.get(keys.result(self.id))
                pipe.zscore(keys.queue(self.tenant), self.id)
                data, score = await pipe.execute()
            if data is not None:
                return bytes(data)
            if score is None:
                raise self._unknown()
            # Late by a twentieth of the time it took, at most.
            waited = asyncio.get_running_loop().time() - began
            await asyncio.sleep(min(max(waited / 20, _FIRST_LOOK_S), _LAST_LOOK_S))

    def _unknown(self) -> ErrJobNotFound:
        return ErrJobNotFound(
            f"there is no job {self.id}: it was never submitted here, or its result has expired",
            context={"job_id": self.id},
        )


class Client:
    """A web application's way in. One per process; safe for concurrent use.

    ::

        async with Client("redis://127.0.0.1:6379/0") as client:
            job = await client.submit(Job(argv=("python3", "-c", "print(6*7)")), tenant="acme")
            result = await job.result()

    Args:
        url: Redis; ``CORRAL_REDIS_URL`` if left out.
        policy: checked at submit, so that a job that is sure to be refused
            fails at once. The worker's own policy is the one that counts.

    Raises:
        ErrClientNotConfigured: no URL was given, or it is of no known kind.
    """

    def __init__(self, url: str | None = None, *, policy: Policy | None = None) -> None:
        url = url or os.environ.get(REDIS_URL_VARIABLE)
        if not url:
            raise ErrClientNotConfigured(
                "no Redis is configured: give the client a URL or set CORRAL_REDIS_URL,"
                " for example redis://127.0.0.1:6379/0"
            )
        self._redis = connect(url)
        self._policy = policy

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Jobs go on."""
        await self._redis.aclose(close_connection_pool=True)

    async def ping(self) -> None:
        """Return if Redis answers.

        Raises:
            ErrDaemonUnavailable: it does not.
        """
        await ping(self._redis)

    async def submit(self, job: Job, *, tenant: str = "default") -> SubmittedJob:
        """Put a job on its tenant's queue.

        Raises:
            ErrInvalidJob: the job or the tenant's name is malformed.
            ErrSecurityViolation: the job breaks the client's policy.
            ErrDaemonUnavailable: Redis does not answer; ``retry_safety`` says
                whether the job may have been queued all the same.

        Cancelling the call leaves it open whether the job was queued.
        """
        job_id = keys.new_job_id(tenant)
        checked = codec.decode_job(codec.encode_job(job))
        if self._policy is not None:
            self._policy.enforce(checked)
        async with _reaching(self._redis):
            await cast("Awaitable[int]", self._redis.sadd(keys.TENANTS, tenant))
        async with _reaching(self._redis, retry_safety="unknown"):
            await self._redis.enqueue_job(
                keys.FUNCTION, checked, _job_id=job_id, _queue_name=keys.queue(tenant)
            )
        return SubmittedJob(self._redis, job_id)

    def job(self, job_id: str) -> SubmittedJob:
        """Return the handle of a job submitted earlier, perhaps by another process.

        Raises:
            ErrInvalidJob: the id is not of the form ``tenant:unique``.
        """
        return SubmittedJob(self._redis, job_id)


@asynccontextmanager
async def _reaching(
    redis: ArqRedis, *, retry_safety: RetrySafety = "not_started"
) -> AsyncIterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        place = redis.connection_pool.connection_kwargs
        where = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        raise ErrDaemonUnavailable(
            f"Redis at {where} does not answer ({type(error).__name__}): is it running, and is"
            " CORRAL_REDIS_URL right?",
            retry_safety=retry_safety,
        ) from error
    except RedisError as error:
        raise Fault(f"Redis refused a command: {error}", retry_safety=retry_safety) from error
