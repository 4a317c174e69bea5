"""Puts jobs on the queues."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import Final, cast

import msgspec
from redis.asyncio import Redis

from corral import codec, keys
from corral.errors import ErrInvalidJob, ErrQuotaExceeded
from corral.job import Job
from corral.job_codec import digest_job
from corral.reaching import reaching
from corral.scripts import Argument, Script

MOST_AT_ONCE: Final = 1000
"""Most jobs of one round trip: Redis does nothing else meanwhile."""
MOST_BYTES_AT_ONCE: Final = 64 * 1024 * 1024
"""Most bytes of one round trip, encoded: they keep Redis for some tenths of a second."""

LONGEST_DELAY_S: Final = 10 * 366 * 24 * 3600
"""Ten years: who means more means something else."""

_LONGEST_KEY = 256
_NEVER = -1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A job with what the queue is to know of it."""

    job: Job
    tenant: str
    start_at: dt.datetime | None = None
    delay_s: float = 0.0
    idempotency_key: str | None = None


class Submission:
    """Submits jobs: all of a call's or none, in one round trip."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = Script("corral", "enqueue")

    async def send(self, requests: Sequence[Request]) -> list[str]:
        """Return the ids of the jobs: new ones, or those of earlier jobs of the same keys.

        Raises:
            ErrInvalidJob: a request is malformed, its idempotency key was used
                for another job, or they are too many or too large together.
            ErrQuotaExceeded: a tenant is at a cap.
            ErrDaemonUnavailable: Redis does not answer, or is full; ``retry_safety`` says
                whether the jobs may have been queued all the same.
        """
        if len(requests) > MOST_AT_ONCE:
            raise ErrInvalidJob(
                f"{len(requests)} jobs are too many at once: submit {MOST_AT_ONCE} at a time"
            )
        words = _all_words(requests)
        async with reaching(self._redis):
            # Whoever cannot connect has sent nothing.
            pool = self._redis.connection_pool
            await pool.release(await pool.get_connection())
        async with reaching(self._redis, retry_safety="unknown"):
            reply = cast("list[bytes]", await self._script.run(self._redis, len(requests), *words))
        match reply[0]:
            case b"ok":
                return [job_id.decode() for job_id in reply[1:]]
            case b"conflict":
                raise ErrInvalidJob(
                    "this idempotency key was used for another job: use a new key for a new job",
                    path="$.idempotency_key",
                    context={"job_id": reply[2].decode()},
                )
            case _:
                raise _quota(requests[int(reply[1]) - 1].tenant, *map(bytes.decode, reply[2:]))


def _all_words(requests: Sequence[Request]) -> list[Argument]:
    found: list[Argument] = []
    size = 0
    for request in requests:
        words = _words(request)
        size += sum(len(word) for word in words if isinstance(word, bytes))
        if size > MOST_BYTES_AT_ONCE:
            raise ErrInvalidJob(
                f"the jobs have more than {MOST_BYTES_AT_ONCE} bytes together, more than Redis is"
                " to take at once: submit them in parts"
            )
        found += words
    return found


def _words(request: Request) -> tuple[Argument, ...]:
    payload = codec.serialize(
        {
            "t": None,
            "f": keys.FUNCTION,
            "a": (request.job,),
            "k": {},
            "et": time.time_ns() // 1_000_000,
        }
    )
    key = request.idempotency_key or ""
    if len(key) > _LONGEST_KEY:
        raise ErrInvalidJob(
            f"the key has {len(key)} characters, at most {_LONGEST_KEY} are accepted",
            path="$.idempotency_key",
        )
    if not 0 <= request.delay_s <= LONGEST_DELAY_S:
        raise ErrInvalidJob(
            f"this is no delay: give 0 to {LONGEST_DELAY_S} seconds", path="$.delay_s"
        )
    start_ms: Argument = ""
    if request.start_at is not None:
        if request.start_at.tzinfo is None or request.delay_s:
            raise ErrInvalidJob(
                "give a time with its zone, or a delay, not both", path="$.start_at"
            )
        start_ms = round(request.start_at.timestamp() * 1000)
    within = request.job.start_within_s
    return (
        request.tenant,
        keys.new_job_id(request.tenant),
        payload,
        round(request.delay_s * 1000),
        start_ms,
        "" if within is None else round(within * 1000),
        key,
        digest_job(request.job) if key else "",
    )


def _quota(tenant: str, reason: str, limit: str, found: str, wait_ms: str) -> ErrQuotaExceeded:
    messages = {
        "unknown_tenant": f"tenant {tenant} is not known, and only known ones may submit",
        "payload_bytes": f"the job has {found} bytes, tenant {tenant} may submit {limit}",
        "depth": f"tenant {tenant} has {found} jobs queued, and may have {limit}",
    }
    return ErrQuotaExceeded(
        messages.get(reason, reason),
        retry_after_s=None if int(wait_ms) == _NEVER else int(wait_ms) / 1000,
        context={"tenant": tenant, "quota": reason, "limit": limit, "found": found},
    )
