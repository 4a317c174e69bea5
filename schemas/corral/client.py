"""Submitting jobs and getting their results, from a web application."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from corral import keys
from corral.connection import connect, ping
from corral.done import DoneListener
from corral.errors import ErrClientNotConfigured
from corral.guests import Guests
from corral.job import Job
from corral.job_codec import decode_job, encode_job
from corral.policy import Policy
from corral.results import FinishedJob, ResultsStream
from corral.scripts import Script
from corral.status import JobStatus
from corral.submission import Request, Submission
from corral.submitted import SubmittedJob

__all__ = ["REDIS_URL_VARIABLE", "Client", "JobStatus", "SubmittedJob"]

REDIS_URL_VARIABLE = "CORRAL_REDIS_URL"
"""Environment variable that names the Redis of a client made without a URL."""


class Client:
    """A web application's way in. One per process; safe for concurrent use.

    ::

        async with Client("redis://127.0.0.1:6379/0") as client:
            job = await client.submit(Job(argv=("python3", "-c", "print(6*7)")), tenant="acme")
            result = await job.result()

    Args:
        url: Redis, of any kind that :mod:`corral.connection` names;
            ``CORRAL_REDIS_URL`` if left out.
        policy: checked at submit, so that a job that is sure to be refused
            fails at once. The worker's own policy is the one that counts.

    Raises:
        ErrClientNotConfigured: no URL was given, or it cannot be used.
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
        self._submission = Submission(self._redis)
        self._listener = DoneListener(self._redis)
        self._guests = Guests(self._redis)
        self._canceller = Script("corral", "cancel")
        self._explainer = Script("corral", "explain")

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
        await self._listener.aclose()
        await self._guests.aclose()
        await self._redis.aclose(close_connection_pool=True)

    async def ping(self) -> None:
        """Return if Redis answers.

        Raises:
            ErrDaemonUnavailable: it does not.
        """
        await ping(self._redis)

    async def submit(
        self,
        job: Job,
        *,
        tenant: str = "default",
        start_at: dt.datetime | None = None,
        delay_s: float = 0.0,
        idempotency_key: str | None = None,
    ) -> SubmittedJob:
        """Put a job on its tenant's queue, where it waits for as long as it takes.

        Only ``start_within_s`` of the job ends that by itself.

        Args:
            job: what is to be run.
            tenant: whose it is.
            start_at: the earliest start, with its time zone, by Redis' clock.
            delay_s: the earliest start as seconds from now, ten years at most.
            idempotency_key: the same key of a tenant gives the same job back
                instead of a second one, as long as the job waits or runs or
                its result is kept (the workers' ``keep_result_s``, an hour),
                and for a day after its earliest start at most. A fault is a
                result, too: try again under another key.

        Raises:
            ErrInvalidJob: the job, the tenant's name or the time of the start
                is malformed, or the idempotency key was used for another job.
            ErrSecurityViolation: the job breaks the client's policy.
            ErrQuotaExceeded: the tenant is at a cap; says how long to wait.
            ErrDaemonUnavailable: Redis does not answer, or is full; ``retry_safety`` says
                whether the job may have been queued all the same.

        Cancelling the call leaves it open whether the job was queued.
        """
        (submitted,) = await self._submit(
            [
                Request(
                    job=job,
                    tenant=tenant,
                    start_at=start_at,
                    delay_s=delay_s,
                    idempotency_key=idempotency_key,
                )
            ]
        )
        return submitted

    async def submit_many(
        self,
        jobs: Sequence[Job],
        *,
        tenant: str = "default",
        start_at: dt.datetime | None = None,
        delay_s: float = 0.0,
    ) -> list[SubmittedJob]:
        """Put jobs on a tenant's queue, all or none, in one round trip.

        Up to a thousand, of up to 64 MiB together as they are encoded (stdin
        takes a third more than it has): Redis does nothing else meanwhile.

        Raises what :meth:`submit` raises, and :class:`corral.ErrInvalidJob` if
        they are too many or too large.
        """
        return await self._submit(
            [Request(job=job, tenant=tenant, start_at=start_at, delay_s=delay_s) for job in jobs]
        )

    async def _submit(self, requests: Sequence[Request]) -> list[SubmittedJob]:
        for request in requests:
            keys.check_tenant(request.tenant)
            if self._policy is not None:
                self._policy.enforce(decode_job(encode_job(request.job)))
        if not requests:
            return []
        ids = await self._submission.send(requests)
        return [self.job(job_id) for job_id in ids]

    def results(
        self, tenant: str, *, group: str = "default", consumer: str | None = None
    ) -> AsyncIterator[FinishedJob]:
        """Iterate over a tenant's results as they come: a queue of its own.

        Every result in the tenant's stream is told once to each group, and
        comes again until it is acknowledged::

            async for finished in client.results("acme", group="web"):
                print(finished.job_id, await finished.result())
                await finished.ack()

        The stream is bounded: beyond the workers' ``stream_entries`` (1,000)
        the oldest go, told or not, and once no result has come for
        ``keep_result_s`` (an hour) it goes as a whole. Whoever was away for
        longer asks for the results of the jobs it submitted, by their ids.

        Args:
            tenant: whose results.
            group: each group gets every result, each of its consumers a part.
            consumer: a name that is the same after a restart gets again what
                it had not acknowledged; if left out one of its own, which is
                gone when the iteration ends, unless entries are left that it
                has not acknowledged. Another consumer takes over what was
                left for a minute.

        Raises:
            ErrInvalidJob: the tenant's name is malformed.
            ErrDaemonUnavailable: Redis does not answer; from the iterator.
        """
        stream = ResultsStream(
            self._redis, tenant=tenant, group=group, consumer=consumer, guests=self._guests
        )
        return stream.entries()

    def job(self, job_id: str, *, tenant: str | None = None) -> SubmittedJob:
        """Return the handle of a job submitted earlier, perhaps by another process.

        Args:
            job_id: as :meth:`submit` gave it.
            tenant: whose job it is, for an id that stock arq made up.

        Raises:
            ErrInvalidJob: the id is not of the form ``tenant:unique`` and no
                tenant is given, or it is another tenant's.
        """
        return SubmittedJob(
            self._redis,
            job_id,
            tenant=keys.tenant_of(job_id) if tenant is None else keys.check_id(job_id, tenant),
            listener=self._listener,
            canceller=self._canceller,
            explainer=self._explainer,
        )
