"""Every Redis key corral and arq use, and the ids they are made of.

The arq part is arq's own layout, unchanged: stock arq clients read and write it.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid

from arq.constants import (
    abort_jobs_ss,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

from corral.errors import ErrInvalidJob

FUNCTION = "execute"
"""Name of the one arq function there is."""
TENANTS = "corral:tenants"
"""Set of the tenants that have ever submitted through :class:`corral.Client`."""
ABORT = abort_jobs_ss
"""arq's sorted set of abort requests."""
DEFAULTS = "corral:defaults"
"""Hash of the settings of tenants that have none of their own."""
READY = "corral:ready"
"""Sorted set of the tenants a job can be claimed of now, by virtual time in microseconds."""
LATER = "corral:later"
"""Sorted set of the tenants to look at again, by when in ms."""
QUIET = "corral:quiet"
"""Set of the known tenants that had no job when they were last looked at."""
VIRTUAL_TIME = "corral:vt"
"""Hash of the service each tenant has had over its weight, in microseconds."""
CLOCK = "corral:clock"
"""Virtual time of the tenant served last: where one enters that was away."""
ESTIMATE = "corral:estimate"
"""Hash of how many ms a tenant's job is expected to take."""
WAKE = "corral:wake"
"""List of hints that a job can be claimed; idle workers pop it, blocking."""
EPOCH = "corral:epoch"
"""Counter that makes every fencing token one of a kind."""
DEADLINES = "corral:deadlines"
"""Sorted set of the ids of queued jobs that must start by a time, in ms."""
DEAD = "corral:dead"
"""Sorted set of the ids of jobs that were given up, by when in ms."""
WORKERS = "corral:workers"
"""Sorted set of the living workers, by the time in ms at which they count as gone."""
UNREADY_PREFIX = "corral:unready:"
"""What the host of a worker is short of, by the worker's name, as long as it takes no jobs."""
NOBODY = "corral:nobody"
"""Channel on which nothing is ever told."""
SWEEPER = "corral:sweeper"
"""Name of the worker that sweeps for all, while its lease on that lasts."""
SWEEP = "corral:sweep"
"""Hash of where the sweeper goes on, and how long and how many results it keeps."""

QUEUE_PREFIX = "arq:queue:"
_TENANT_PREFIX = "corral:tenant:"
_RUN_PREFIX = "corral:run:"
_STATE_PREFIX = "corral:job:"
_DEAD_PREFIX = "corral:dead:"
_DEATH_PREFIX = "corral:death:"
_DONE_PREFIX = "corral:done:"
_CONTROL_PREFIX = "corral:control:"
_RESULTS_PREFIX = "corral:results:"
_IDEMPOTENCY_PREFIX = "corral:idempotency:"
_CLAIM_PREFIX = "corral:claim:"
_LONGEST_ID = 256
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_JOB_ID = re.compile(r"(?P<tenant>[a-z0-9][a-z0-9_-]{0,62}):(?P<unique>[A-Za-z0-9_-]{1,128})\Z")


def check_tenant(tenant: str) -> str:
    """Return the name as it is.

    Raises:
        ErrInvalidJob: it is not 1 to 63 of ``a-z 0-9 _ -``.
    """
    if not _TENANT.match(tenant):
        raise ErrInvalidJob(
            f"{tenant[:64]!r} is no tenant name: use 1 to 63 of a-z, 0-9, _ and -,"
            " beginning with a letter or digit",
            path="$.tenant",
        )
    return tenant


def new_job_id(tenant: str) -> str:
    """Return ``tenant:uuid`` with a UUIDv7 (RFC 9562), so that ids sort by time.

    Within one millisecond arq starts jobs in the order of their ids.
    """
    stamp = (time.time_ns() // 1_000_000) << 80
    value = stamp | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return f"{check_tenant(tenant)}:{uuid.UUID(int=value)}"


def tenant_of(job_id: str) -> str:
    """Return the tenant an id belongs to.

    Raises:
        ErrInvalidJob: the id is not ``tenant:unique``.
    """
    match = _JOB_ID.match(job_id)
    if not match:
        raise ErrInvalidJob(
            f"{job_id[:64]!r} is no job id: it is to look like tenant:unique", path="$.id"
        )
    return match["tenant"]


def check_id(job_id: str, tenant: str) -> str:
    """Return the tenant, if a job of it may have this id; stock arq's name no tenant.

    Raises:
        ErrInvalidJob: the id is another tenant's, or nothing that could be one.
    """
    check_tenant(tenant)
    match = _JOB_ID.match(job_id)
    if (match and match["tenant"] != tenant) or not job_id or len(job_id) > _LONGEST_ID:
        raise ErrInvalidJob(f"{job_id[:64]!r} is no id of tenant {tenant}", path="$.id")
    return tenant


def queue(tenant: str) -> str:
    """Return the tenant's queue, a sorted set of job ids by earliest start in ms."""
    return QUEUE_PREFIX + check_tenant(tenant)


def job(job_id: str) -> str:
    """Return the key of the encoded job."""
    return job_key_prefix + job_id


def in_progress(job_id: str) -> str:
    """Return the key that exists while a worker holds the job."""
    return in_progress_key_prefix + job_id


def retry(job_id: str) -> str:
    """Return the key of the count of tries."""
    return retry_key_prefix + job_id


def result(job_id: str) -> str:
    """Return the key of the encoded result."""
    return result_key_prefix + job_id


def tenant_settings(tenant: str) -> str:
    """Return the key of the hash of a tenant's own settings."""
    return _TENANT_PREFIX + check_tenant(tenant)


def running(tenant: str) -> str:
    """Return the key of a tenant's live leases: job ids by the end of the lease in ms."""
    return _RUN_PREFIX + check_tenant(tenant)


def state(job_id: str) -> str:
    """Return the key of the hash of what the queue knows of a job that was claimed."""
    return _STATE_PREFIX + job_id


def dead(job_id: str) -> str:
    """Return the key of the payload of a job that was given up."""
    return _DEAD_PREFIX + job_id


def death(job_id: str) -> str:
    """Return the key of the hash of why a job was given up."""
    return _DEATH_PREFIX + job_id


def done(job_id: str) -> str:
    """Return the channel on which a job's end is told."""
    return _DONE_PREFIX + job_id


def control(worker: str) -> str:
    """Return the channel on which a worker is told to stop attempts, by fencing token."""
    return _CONTROL_PREFIX + worker


def results(tenant: str) -> str:
    """Return the key of the stream of a tenant's results."""
    return _RESULTS_PREFIX + check_tenant(tenant)


def for_lua() -> dict[str, str]:
    """Return every name the scripts use, by what they call it.

    The scripts run inside Redis and make names of tenants and jobs by
    themselves; this keeps the layout in one place all the same.
    """
    return {
        "abort": ABORT,
        "claim": _CLAIM_PREFIX,
        "clock": CLOCK,
        "control": _CONTROL_PREFIX,
        "dead": DEAD,
        "dead_job": _DEAD_PREFIX,
        "deadlines": DEADLINES,
        "death": _DEATH_PREFIX,
        "defaults": DEFAULTS,
        "done": _DONE_PREFIX,
        "epoch": EPOCH,
        "estimate": ESTIMATE,
        "idempotency": _IDEMPOTENCY_PREFIX,
        "in_progress": in_progress_key_prefix,
        "job": job_key_prefix,
        "later": LATER,
        "queue": QUEUE_PREFIX,
        "quiet": QUIET,
        "ready": READY,
        "result": result_key_prefix,
        "results": _RESULTS_PREFIX,
        "retry": retry_key_prefix,
        "run": _RUN_PREFIX,
        "state": _STATE_PREFIX,
        "sweep": SWEEP,
        "sweeper": SWEEPER,
        "tenant": _TENANT_PREFIX,
        "tenants": TENANTS,
        "unready": UNREADY_PREFIX,
        "vt": VIRTUAL_TIME,
        "wake": WAKE,
        "workers": WORKERS,
    }
