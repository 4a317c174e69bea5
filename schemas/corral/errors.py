"""What can go wrong, as types.

::

    CorralError
    ├── Rejection                       the caller's to mend; nothing was started
    │   ├── ErrInvalidJob               malformed, absurd, or from a newer version
    │   ├── ErrSecurityViolation        breaks one or more rules of the policy
    │   ├── ErrImageNotFound            names an image this host does not have
    │   ├── ErrProgramNotFound          argv[0] is not in the image, or is not executable
    │   ├── ErrJobNotFound              no such job, or its result has expired
    │   ├── ErrQuotaExceeded            the tenant is at a cap; says how long to wait
    │   └── ErrClientNotConfigured      the client was given no Redis to talk to
    └── Fault                           ours; says whether the job's code may have begun
        ├── ErrGVisorNotAvailable       no usable runsc on the host
        ├── ErrSandboxCreationFailed    the sandbox could not be set up
        ├── ErrSandboxExecutionFailed   the sandbox broke while the program ran
        ├── ErrWorkerLost               the worker went away in the middle
        ├── ErrPolicyUnusable           the tenant's policy in Redis cannot be read
        ├── ErrDaemonUnavailable        Redis does not answer
        └── ErrRedisUnsafe              Redis is too old, or may drop jobs

How a program ended is no error: see :class:`corral.Result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

RetrySafety = Literal["not_started", "started", "unknown"]
"""Whether the job's own code may have begun when something went wrong."""


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One broken rule of the policy."""

    rule: str
    """Stable code of the rule, such as ``root_user``."""
    field: str
    """Path of the offending field, such as ``$.user``."""
    value: str
    """What the job asked for, shortened; never a value of ``env``."""
    allowed: str
    """What would have been accepted."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.field} is {self.value}; allowed: {self.allowed}"


class ErrorData(msgspec.Struct, frozen=True, kw_only=True):
    """A :class:`CorralError` as it crosses the wire.

    Fields of newer versions are ignored, so that an old client still learns
    the code and the message.
    """

    code: str
    message: str
    kind: str = "error"
    """``rejection`` or ``fault``: what an unknown code is to be taken for."""
    retryable: bool = False
    retry_safety: RetrySafety = "not_started"
    context: dict[str, str] = {}
    violations: tuple[Violation, ...] = ()


class CorralError(Exception):
    """Base of every error corral raises.

    An error of a newer version becomes a :class:`Rejection` or a
    :class:`Fault`; :attr:`code` says which one it was.
    """

    code: str = "error"
    """Stable machine name: safe to alert on and to store."""
    kind: str = "error"
    retryable: bool = False
    """Whether the same call may be made again without harm."""
    retry_safety: RetrySafety = "not_started"

    def __init__(self, message: str, *, context: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context: Mapping[str, str] = MappingProxyType(dict(context or {}))

    def __str__(self) -> str:
        return self.message

    def to_data(self) -> ErrorData:
        """Return this error as plain data."""
        return ErrorData(
            code=self.code,
            message=self.message,
            kind=self.kind,
            retryable=self.retryable,
            retry_safety=self.retry_safety,
            context=dict(self.context),
            violations=self.violations if isinstance(self, ErrSecurityViolation) else (),
        )

    @staticmethod
    def from_data(data: ErrorData) -> CorralError:
        """Rebuild an error from the wire by its code, never by an import path."""
        if data.code == ErrSecurityViolation.code:
            return ErrSecurityViolation(data.violations, context=data.context)
        error = (_BY_CODE.get(data.code) or _BY_KIND.get(data.kind, CorralError))(
            data.message, context=data.context
        )
        error.code = data.code
        error.retryable = data.retryable
        error.retry_safety = data.retry_safety
        return error


class Rejection(CorralError):
    """Raised if the request itself is at fault. Nothing was started."""

    code = "rejection"
    kind = "rejection"


class ErrInvalidJob(Rejection):
    """Raised if a job is malformed, absurd, or written by a newer version."""

    code = "invalid_job"

    def __init__(
        self, message: str, *, path: str = "$", context: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, context={"path": path, **(context or {})})

    @property
    def path(self) -> str:
        """Path of the offending field, such as ``$.limits.wall_s``."""
        return self.context["path"]


class ErrSecurityViolation(Rejection):
    """Raised if a job breaks the policy. Lists every broken rule, not only the first."""

    code = "security_violation"

    def __init__(
        self, violations: tuple[Violation, ...], *, context: Mapping[str, str] | None = None
    ) -> None:
        rules = "; ".join(str(violation) for violation in violations)
        super().__init__(f"the job breaks {len(violations)} rule(s): {rules}", context=context)
        self.violations = violations


class ErrImageNotFound(Rejection):
    """Raised if a job names an image that the host does not have."""

    code = "image_not_found"


class ErrProgramNotFound(Rejection):
    """Raised if ``argv[0]`` is not in the image, or may not be executed."""

    code = "program_not_found"


class ErrJobNotFound(Rejection):
    """Raised if there is no such job, or its result has expired."""

    code = "job_not_found"


class ErrQuotaExceeded(Rejection):
    """Raised if a tenant is at one of its caps. Nothing was queued.

    ``context`` names the cap (``depth``, ``payload_bytes``, or
    ``unknown_tenant`` where only known ones may submit), its limit and what
    was found.
    """

    code = "quota_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        told = {} if retry_after_s is None else {"retry_after_s": f"{retry_after_s:g}"}
        super().__init__(message, context={**(context or {}), **told})
        self.retryable = self.retry_after_s is not None

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which there may be room; None if waiting does not help."""
        told = self.context.get("retry_after_s")
        return None if told is None else float(told)


class ErrClientNotConfigured(Rejection):
    """Raised if a client was given no Redis to talk to."""

    code = "client_not_configured"


class Fault(CorralError):
    """Raised if corral or its host failed, not the job.

    ``detail`` is for the worker's log: it may name paths of the host, and does
    not cross the wire.

    ``retry_safety`` says whether the job's code may have begun; only what was
    not started is ``retryable``.
    """

    code = "fault"
    kind = "fault"

    def __init__(
        self,
        message: str,
        *,
        retry_safety: RetrySafety = "not_started",
        detail: str = "",
        context: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, context=context)
        self.detail = detail
        self.retry_safety = retry_safety
        self.retryable = retry_safety == "not_started"


class ErrGVisorNotAvailable(Fault):
    """Raised if the host has no usable ``runsc``."""

    code = "gvisor_not_available"


class ErrSandboxCreationFailed(Fault):
    """Raised if a sandbox could not be set up. The job's code never began."""

    code = "sandbox_creation_failed"


class ErrSandboxExecutionFailed(Fault):
    """Raised if the sandbox itself broke while the program ran."""

    code = "sandbox_execution_failed"


class ErrWorkerLost(Fault):
    """Raised if the worker went away while it held the job."""

    code = "worker_lost"


class ErrPolicyUnusable(Fault):
    """Raised if a tenant's policy cannot be read: none of its jobs is started until it can."""

    code = "policy_unusable"


class ErrDaemonUnavailable(Fault):
    """Raised if Redis does not answer, or is full.

    Then ``context`` has the ``reason`` ``full``, and nothing was queued or changed.
    """

    code = "daemon_unavailable"


class ErrRedisUnsafe(Fault):
    """Raised if Redis is too old, or set so that it may drop jobs. No job is taken from it."""

    code = "redis_unsafe"


_BY_CODE: Mapping[str, type[CorralError]] = MappingProxyType(
    {
        error.code: error
        for error in (
            ErrInvalidJob,
            ErrImageNotFound,
            ErrProgramNotFound,
            ErrJobNotFound,
            ErrQuotaExceeded,
            ErrClientNotConfigured,
            ErrGVisorNotAvailable,
            ErrSandboxCreationFailed,
            ErrSandboxExecutionFailed,
            ErrWorkerLost,
            ErrPolicyUnusable,
            ErrDaemonUnavailable,
            ErrRedisUnsafe,
        )
    }
)
_BY_KIND: Mapping[str, type[CorralError]] = MappingProxyType(
    {error.kind: error for error in (Rejection, Fault)}
)
