"""Where a job is, and what it waits for."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence
from typing import cast

import msgspec

from corral.result import Outcome

Reply = Sequence[bytes | int]


class JobStatus(enum.StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    """Queued, and not to start before a later time."""
    RUNNING = "running"
    """Held by a worker."""
    FINISHED = "finished"
    """Its result, or its error, is there."""


class WaitsFor(enum.StrEnum):
    """What keeps a queued job from starting."""

    WORKER = "worker"
    """No worker is alive that takes jobs; ``hosts_short_of`` says why those that are do not."""
    RESUMPTION = "resumption"
    """Its tenant is suspended."""
    ADMISSION = "admission"
    """Only known tenants are served, and its tenant is not known."""
    START_TIME = "start_time"
    """It is not to start yet."""
    CONCURRENCY = "concurrency"
    """Its tenant has as many jobs running as it may."""
    EARLIER_JOBS = "earlier_jobs"
    """Other jobs of its tenant come first."""
    SLOT = "slot"
    """It is its tenant's next, and gets the next slot that falls to that."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job at one time, by Redis' clock.

    Nothing in it tells of other tenants. Names of workers are names of hosts:
    they are for operators.
    """

    job_id: str
    tenant: str
    status: JobStatus
    waits_for: tuple[WaitsFor, ...] = ()
    """Of a queued job: all that holds, what counts most first."""
    jobs_ahead: int = 0
    """Queued jobs of its tenant that come first."""
    tenant_running: int = 0
    tenant_concurrency: int = 0
    """Most jobs its tenant may have running; 0 is any number."""
    hosts_short_of: tuple[str, ...] = ()
    """If workers are alive and none takes jobs: what their hosts are short of, such as ``disk``."""
    starts_at: dt.datetime | None = None
    """The earliest start of a job that is not to start yet."""
    worker: str | None = None
    """The worker that holds it; None also if that is one of stock arq."""
    claimed_at: dt.datetime | None = None
    attempt: int | None = None
    begun: bool = False
    """Whether its program may have begun in this attempt."""
    lease_ends_in_s: float | None = None
    """Unless it is renewed: a job whose worker died is another's then."""
    cancel_requested: bool = False
    lost_leases: int = 0
    """How often a worker that held it went away."""
    outcome: Outcome | None = None
    """Of a finished job, if it has a result; None also if that has expired."""
    error: str | None = None
    """Code of a finished job's error, if it ended in one."""
    dead_letter: bool = False
    """Whether it was given up and is kept for the operator."""


def explained(job_id: str, tenant: str, reply: Reply) -> Explanation | None:
    """Return what the script ``explain`` told, without how it ended; None if it knows no such job.

    Raises:
        ValueError: that is no reply of it.
    """
    what, *fields = reply
    match what:
        case b"unknown":
            return None
        case b"dead":
            return Explanation(
                job_id=job_id, tenant=tenant, status=JobStatus.FINISHED, dead_letter=True
            )
        case b"finished":
            return Explanation(
                job_id=job_id,
                tenant=tenant,
                status=JobStatus.FINISHED,
                dead_letter=bool(fields[0]),
            )
        case b"running":
            return _running(job_id, tenant, fields)
        case b"queued":
            return _queued(job_id, tenant, fields)
        case _:
            raise ValueError(what)


def _running(job_id: str, tenant: str, fields: Reply) -> Explanation:
    worker, claimed, attempt, begun, lease_ms, cancelled, lost = fields
    return Explanation(
        job_id=job_id,
        tenant=tenant,
        status=JobStatus.RUNNING,
        worker=_text(worker) or None,
        claimed_at=_time(claimed) if claimed else None,
        attempt=int(attempt) if worker else None,
        begun=bool(begun),
        lease_ends_in_s=int(lease_ms) / 1000,
        cancel_requested=bool(cancelled),
        lost_leases=int(lost),
    )


def _queued(job_id: str, tenant: str, fields: Reply) -> Explanation:
    *numbers, short_of = fields
    start, later, ahead, suspended, closed, most, running, workers, lost = map(int, numbers)
    holds = {
        WaitsFor.WORKER: not workers,
        WaitsFor.RESUMPTION: suspended,
        WaitsFor.ADMISSION: closed,
        WaitsFor.START_TIME: later,
        WaitsFor.CONCURRENCY: 0 < most <= running,
        WaitsFor.EARLIER_JOBS: ahead,
    }
    return Explanation(
        job_id=job_id,
        tenant=tenant,
        status=JobStatus.DEFERRED if later else JobStatus.QUEUED,
        waits_for=tuple(what for what, does in holds.items() if does) or (WaitsFor.SLOT,),
        jobs_ahead=ahead,
        tenant_running=running,
        tenant_concurrency=most,
        hosts_short_of=tuple(sorted(set(filter(None, _text(short_of).split(","))))),
        starts_at=_time(start) if later else None,
        lost_leases=lost,
    )


def _text(field: bytes | int) -> str:
    return cast("bytes", field).decode(errors="replace")


def _time(ms: bytes | int) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(ms) / 1000, dt.UTC)
