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

_QUEUE_PREFIX = "arq:queue:"
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


def queue(tenant: str) -> str:
    """Return the tenant's queue, a sorted set of job ids by earliest start in ms."""
    return _QUEUE_PREFIX + check_tenant(tenant)


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
