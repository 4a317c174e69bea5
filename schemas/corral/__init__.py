"""corral runs untrusted code from Redis queues, each job in a fresh gVisor sandbox.

This package is what a web application needs; the worker is ``corral_worker``.

::

    from corral import Client, Job

    async with Client() as client:
        job = await client.submit(Job(argv=("python3", "-c", "print(6*7)")), tenant="acme")
        result = await job.result()
"""

from __future__ import annotations

from corral import codec as codec
from corral.client import Client, JobStatus, SubmittedJob
from corral.errors import (
    CorralError,
    ErrClientNotConfigured,
    ErrDaemonUnavailable,
    ErrGVisorNotAvailable,
    ErrImageNotFound,
    ErrInvalidJob,
    ErrJobNotFound,
    ErrPolicyUnusable,
    ErrProgramNotFound,
    ErrQuotaExceeded,
    ErrRedisUnsafe,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    ErrSecurityViolation,
    ErrWorkerLost,
    Fault,
    Rejection,
    Violation,
)
from corral.job import Job, Limits, Mount
from corral.policy import Policy, PolicyNarrowing
from corral.result import (
    EffectiveLimits,
    HostLimits,
    JobCancelled,
    Outcome,
    Phases,
    Provenance,
    Result,
    Termination,
    Usage,
)
from corral.status import Explanation, WaitsFor

__all__ = [
    "Client",
    "CorralError",
    "EffectiveLimits",
    "ErrClientNotConfigured",
    "ErrDaemonUnavailable",
    "ErrGVisorNotAvailable",
    "ErrImageNotFound",
    "ErrInvalidJob",
    "ErrJobNotFound",
    "ErrPolicyUnusable",
    "ErrProgramNotFound",
    "ErrQuotaExceeded",
    "ErrRedisUnsafe",
    "ErrSandboxCreationFailed",
    "ErrSandboxExecutionFailed",
    "ErrSecurityViolation",
    "ErrWorkerLost",
    "Explanation",
    "Fault",
    "HostLimits",
    "Job",
    "JobCancelled",
    "JobStatus",
    "Limits",
    "Mount",
    "Outcome",
    "Phases",
    "Policy",
    "PolicyNarrowing",
    "Provenance",
    "Rejection",
    "Result",
    "SubmittedJob",
    "Termination",
    "Usage",
    "Violation",
    "WaitsFor",
    "codec",
]
