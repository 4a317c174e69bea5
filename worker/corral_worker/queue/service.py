"""The way of one claimed job: decode, run, commit."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, cast

import msgspec
import structlog

from corral import (
    CorralError,
    ErrInvalidJob,
    ErrPolicyUnusable,
    ErrWorkerLost,
    Fault,
    Job,
    Outcome,
    PolicyNarrowing,
    Result,
    codec,
    keys,
)
from corral.job_codec import MAX_PAYLOAD_BYTES
from corral_worker.executor.executor import Attempt
from corral_worker.queue.claims import Claim
from corral_worker.queue.commits import Commit, Commits
from corral_worker.queue.leases import Lease
from corral_worker.queue.room import Room
from corral_worker.queue.starts import Starts
from corral_worker.queue.tenant_config import decode_policy
from corral_worker.sandbox.stop import Stop

_LOST_TOO_OFTEN = "lost_leases"
_INVALID = "invalid_job"
_ROOM_BYTES = 16 * 1024 * 1024
"""Of output, as it was read: encoded, and on its way, it takes several times as much."""

_Room = Callable[[int], Awaitable[None]]
"""Of one result; see :meth:`Room.share`."""


class Executes(Protocol):
    """What runs one attempt to its end."""

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        """Return how the attempt ended; ``stop`` ends it earlier.

        Raises:
            CorralError: it was rejected, or a fault struck.
        """


class _Ending(msgspec.Struct, frozen=True, kw_only=True):
    how: Result | CorralError
    attempts: int = 1
    within_s: float | None = None
    enqueued_ms: int | None = None
    dead: str = ""


class JobService:
    """Brings claimed jobs to their ends.

    Args:
        executor: runs the attempts.
        starts: marks that a program starts.
        commits: writes how attempts ended.
    """

    def __init__(self, *, executor: Executes, starts: Starts, commits: Commits) -> None:
        self._executor = executor
        self._starts = starts
        self._commits = commits
        self._room = Room(_ROOM_BYTES)
        self._log = structlog.get_logger()

    async def serve(self, lease: Lease) -> None:
        """Run the job, or find out why not, and commit how it ended."""
        began_ms = time.time_ns() // 1_000_000
        with self._room.share() as room:
            try:
                answer = await self._settle(lease, await self._ended(lease, room), began_ms)
            except Exception:  # noqa: BLE001 - as below; the lease ends by itself
                self._log.exception("commit.failed", job_id=lease.claim.job_id)
                return
        if answer is Commit.REFUSED:
            self._log.warning(
                "commit.refused",
                job_id=lease.claim.job_id,
                reason="its lock in Redis is another attempt's, or gone",
            )
        elif answer is Commit.GIVEN_UP:
            self._log.warning(
                "commit.given_up",
                job_id=lease.claim.job_id,
                reason="Redis did not take it before the lease, or the worker, was to end",
            )

    async def _ended(self, lease: Lease, room: _Room) -> _Ending:
        try:
            return await self._end(lease, room)
        except Exception as error:  # noqa: BLE001 - one job's trouble is not the next one's
            self._log.exception("job.crashed", job_id=lease.claim.job_id)
            fault = Fault(
                f"the worker failed with {type(error).__name__}: see its log",
                retry_safety="unknown",
            )
            return _Ending(how=fault)

    async def _end(self, lease: Lease, room: _Room) -> _Ending:
        claim = lease.claim
        match claim.what:
            case "cancelled":
                return _Ending(how=Result(outcome=Outcome.CANCELLED))
            case "gone":
                return _Ending(how=Result(outcome=Outcome.EXPIRED))
            case "large":
                return _Ending(
                    how=ErrInvalidJob(f"the payload has more than {MAX_PAYLOAD_BYTES} bytes"),
                    dead=_INVALID,
                )
            case "dead":
                return _Ending(
                    how=ErrWorkerLost(
                        f"{claim.lost} workers went away while they held the job: it is kept among"
                        " the dead letters",
                        retry_safety="unknown" if claim.starts else "not_started",
                    ),
                    dead=_LOST_TOO_OFTEN,
                )
            case "run":
                return await self._run(lease, room)

    async def _run(self, lease: Lease, room: _Room) -> _Ending:
        claim = lease.claim
        try:
            fields = codec.deserialize(claim.payload)
            (job,) = cast("tuple[Job]", fields["a"])
        except (CorralError, ValueError, KeyError) as error:
            known = error if isinstance(error, CorralError) else _not_a_job()
            return _Ending(how=known, dead=_INVALID)
        enqueued_ms = cast("int", fields["et"])
        try:
            narrowing = decode_policy(claim.policy, tenant=claim.tenant)
        except ErrPolicyUnusable as error:
            self._log.error(
                "policy.unusable",
                tenant=claim.tenant,
                job_id=claim.job_id,
                detail=error.detail,
                remedy="set it again, with corral tenants set --policy, or unset it",
            )
            return _Ending(how=error, enqueued_ms=enqueued_ms)
        if claim.starts >= job.attempts:
            how: Result | CorralError = ErrWorkerLost(
                "a worker went away while it held the job, whose program may have run; the job"
                f" allows {job.attempts} attempt(s)",
                retry_safety="unknown",
            )
        else:
            begin = partial(self._starts.begin, lease)
            attempt = _attempt(claim, job, narrowing, begin=begin, room=room)
            try:
                how = await self._executor.execute(attempt, lease.stop)
            except CorralError as error:
                how = error
        return _Ending(
            how=how,
            attempts=job.attempts,
            within_s=job.start_within_s,
            enqueued_ms=enqueued_ms,
        )

    async def _settle(self, lease: Lease, ending: _Ending, began_ms: int) -> Commit:
        lease.settling = True
        how = ending.how
        if isinstance(how, ErrWorkerLost) and not ending.dead:
            started = how.retry_safety != "not_started"
            another = lease.stop.cause == "shutdown" and lease.claim.starts + 1 < ending.attempts
            if another or not started:
                answer = await self._commits.hand_back(
                    lease, started=started, within_s=ending.within_s
                )
                if answer is not Commit.CANCELLED:
                    return answer
                how = Result(outcome=Outcome.CANCELLED)
        data = _encode(lease.claim, how, ending.enqueued_ms, began_ms)
        outcome = str(how.outcome) if isinstance(how, Result) else how.code
        dead = ending.dead
        # The output is not to be in memory twice for as long as Redis takes.
        del ending, how
        return await self._commits.final(lease, data, outcome=outcome, dead=dead)


def _not_a_job() -> ErrInvalidJob:
    return ErrInvalidJob("this is not a job", path="$.a")


def _attempt(
    claim: Claim,
    job: Job,
    narrowing: PolicyNarrowing,
    *,
    begin: Callable[[], Awaitable[None]],
    room: _Room,
) -> Attempt:
    # Both ends of the time in the queue are read from Redis' clock, so that
    # the caller's may be off.
    queued = dt.timedelta(seconds=claim.queued_s)
    return Attempt(
        job=job,
        job_id=claim.job_id,
        tenant=claim.tenant,
        number=claim.starts + 1,
        enqueued_at=dt.datetime.now(dt.UTC) - queued,
        begin=begin,
        room=room,
        narrowing=narrowing,
    )


def _encode(
    claim: Claim, how: Result | CorralError, enqueued_ms: int | None, began_ms: int
) -> bytes:
    return codec.serialize(
        {
            "t": claim.starts + 1,
            "f": keys.FUNCTION,
            # A job may be due since 1970, and the clock here be behind that of Redis.
            "et": max(0, began_ms - round(claim.queued_s * 1000))
            if enqueued_ms is None
            else enqueued_ms,
            "s": isinstance(how, Result) and how.outcome is not Outcome.CANCELLED,
            "r": how,
            "st": began_ms,
            "ft": time.time_ns() // 1_000_000,
            "q": _readable(keys.QUEUE_PREFIX + claim.tenant),
            "id": _readable(claim.job_id),
        }
    )


def _readable(name: str) -> str:
    """Return a name as JSON can hold it: a stranger's need not be UTF-8."""
    return name.encode("utf-8", "replace").decode()
