"""The dead letters: jobs that were given up, kept for the operator."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final, cast

import msgspec
from redis.asyncio import Redis

from corral import CorralError, ErrInvalidJob, ErrJobNotFound, Job, Rejection, codec, keys
from corral.reaching import reaching
from corral.scripts import Script

MOST_LISTED: Final = 10_000
"""No more are kept."""

_DETAILS = ("tenant", "why", "lost", "starts")


class ErrRetryRefused(Rejection):
    """Raised if a dead letter cannot go back to its queue. Nothing was changed."""

    code = "retry_refused"


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was given up."""

    job_id: str
    tenant: str
    why: str
    """``lost_leases``: its workers went away again and again; ``invalid_job``: it is none."""
    given_up_at: dt.datetime
    """By Redis' clock."""
    lost_leases: int
    starts: int
    """How often its program may have begun."""
    payload_bytes: int
    """Size of the encoded job; 0 if it has expired."""


class DeadJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a dead letter asked for, without anything that could be a secret."""

    program: str
    """``argv[0]``."""
    arguments: int
    """How many arguments the program was to get."""
    image: str
    env_variables: int
    stdin_bytes: int
    attempts: int


class DeadLetters:
    """The dead letters of all tenants.

    Each call raises :class:`corral.ErrDaemonUnavailable` if Redis does not answer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._revive = Script(__package__, "revive")

    async def newest(self, most: int) -> list[DeadLetter]:
        """Return up to ``most`` dead letters, the newest first."""
        async with reaching(self._redis):
            found = cast(
                "list[tuple[bytes, float]]",
                await self._redis.zrange(keys.DEAD, 0, most - 1, desc=True, withscores=True),
            )
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id, _ in found:
                    pipe.hmget(keys.death(_text(job_id)), list(_DETAILS))
                    pipe.strlen(keys.dead(_text(job_id)))
                replies: list[object] = await pipe.execute()
        return [
            _letter(job_id, score, replies[2 * at], replies[2 * at + 1])
            for at, (job_id, score) in enumerate(found)
        ]

    async def show(self, job_id: str) -> tuple[DeadLetter, DeadJob | CorralError]:
        """Return a dead letter, and what it asked for or why that cannot be read.

        Raises:
            ErrJobNotFound: it is no dead letter.
        """
        async with reaching(self._redis), self._redis.pipeline(transaction=True) as pipe:
            pipe.zscore(keys.DEAD, job_id)
            pipe.hmget(keys.death(job_id), list(_DETAILS))
            pipe.get(keys.dead(job_id))
            reply = cast("tuple[float | None, object, bytes | None]", await pipe.execute())
        score, details, payload = reply
        if score is None:
            raise _unknown(job_id)
        letter = _letter(job_id.encode(), score, details, len(payload or b""))
        return letter, _asked_for(payload)

    async def retry(self, job_id: str) -> None:
        """Put a dead letter back on its queue, as if it had never been tried.

        If it must start within a time, that begins anew. Its old result is
        dropped; in the results stream it stays.

        Raises:
            ErrJobNotFound: it is no dead letter.
            ErrRetryRefused: its payload has expired, or another job has its id.
        """
        async with reaching(self._redis):
            payload = await self._redis.get(keys.dead(job_id))
        within_ms = _within_ms(payload)
        async with reaching(self._redis, retry_safety="unknown"):
            answer = await self._revive.run(
                self._redis, job_id, "" if within_ms is None else within_ms
            )
        match answer:
            case b"unknown":
                raise _unknown(job_id)
            case b"gone":
                raise ErrRetryRefused(
                    f"what {job_id} asked for has expired: drop it, and submit the job again"
                )
            case b"taken":
                raise ErrRetryRefused(
                    f"another job of the id {job_id} is queued or runs: wait for its end, or"
                    " cancel it"
                )
            case _:
                pass

    async def drop(self, job_id: str) -> None:
        """Delete a dead letter for good.

        Raises:
            ErrJobNotFound: it is no dead letter.
        """
        async with reaching(self._redis), self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(keys.DEAD, job_id)
            pipe.delete(keys.dead(job_id), keys.death(job_id))
            removed, _ = await pipe.execute()
        if not removed:
            raise _unknown(job_id)


def _letter(job_id: bytes, score: float, details: object, payload_bytes: object) -> DeadLetter:
    tenant, why, lost, starts = cast("Sequence[bytes | None]", details)
    return DeadLetter(
        job_id=_text(job_id),
        tenant=(tenant or job_id.partition(b":")[0]).decode(errors="backslashreplace"),
        why=(why or b"unknown").decode(errors="backslashreplace"),
        given_up_at=dt.datetime.fromtimestamp(score / 1000, dt.UTC),
        lost_leases=int(lost or 0),
        starts=int(starts or 0),
        payload_bytes=cast("int", payload_bytes),
    )


def _asked_for(payload: bytes | None) -> DeadJob | CorralError:
    if payload is None:
        return ErrJobNotFound("what it asked for has expired")
    job = _decode(payload)
    if isinstance(job, CorralError):
        return job
    return DeadJob(
        program=job.argv[0],
        arguments=len(job.argv) - 1,
        image=job.image,
        env_variables=len(job.env),
        stdin_bytes=len(job.stdin),
        attempts=job.attempts,
    )


def _decode(payload: bytes) -> Job | CorralError:
    try:
        (job,) = cast("tuple[Job]", codec.deserialize(payload)["a"])
    except CorralError as error:
        return error
    except (ValueError, KeyError):
        return ErrInvalidJob("this is not a job", path="$.a")
    return job


def _within_ms(payload: bytes | None) -> int | None:
    job = None if payload is None else _decode(payload)
    if not isinstance(job, Job) or job.start_within_s is None:
        return None
    return round(job.start_within_s * 1000)


def _text(job_id: bytes) -> str:
    # Ids of corral's clients are ASCII; of others, what is shown need not be the id.
    return job_id.decode(errors="backslashreplace")


def _unknown(job_id: str) -> ErrJobNotFound:
    return ErrJobNotFound(
        f"{job_id} is not among the dead letters: see corral dead list",
        context={"job_id": job_id},
    )
