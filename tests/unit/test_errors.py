"""The errors: a closed tree with stable codes, and its way over the wire."""

from __future__ import annotations

from typing import get_args

import pytest

import corral
from corral import CorralError, ErrInvalidJob, ErrSecurityViolation, Fault, Rejection, Violation
from corral.errors import ErrorData, RetrySafety

REJECTIONS = {
    "invalid_job": corral.ErrInvalidJob,
    "security_violation": corral.ErrSecurityViolation,
    "image_not_found": corral.ErrImageNotFound,
    "program_not_found": corral.ErrProgramNotFound,
    "job_not_found": corral.ErrJobNotFound,
    "quota_exceeded": corral.ErrQuotaExceeded,
    "client_not_configured": corral.ErrClientNotConfigured,
}
FAULTS = {
    "gvisor_not_available": corral.ErrGVisorNotAvailable,
    "sandbox_creation_failed": corral.ErrSandboxCreationFailed,
    "sandbox_execution_failed": corral.ErrSandboxExecutionFailed,
    "worker_lost": corral.ErrWorkerLost,
    "policy_unusable": corral.ErrPolicyUnusable,
    "daemon_unavailable": corral.ErrDaemonUnavailable,
    "redis_unsafe": corral.ErrRedisUnsafe,
}
ALL: dict[str, type[CorralError]] = {**REJECTIONS, **FAULTS}
VIOLATION = Violation(rule="root_user", field="$.user", value="root", allowed="nobody")


def test_every_public_error_has_its_own_stable_code() -> None:
    public: set[type[CorralError]] = {
        getattr(corral, name) for name in corral.__all__ if name.startswith("Err")
    }

    assert public == {*REJECTIONS.values(), *FAULTS.values()}
    assert {code: kind.code for code, kind in ALL.items()} == {code: code for code in ALL}


def test_the_callers_mistakes_and_ours_are_told_apart() -> None:
    for rejection in REJECTIONS.values():
        assert issubclass(rejection, Rejection)
        assert not issubclass(rejection, Fault)
    for fault in FAULTS.values():
        assert issubclass(fault, Fault)
        assert not issubclass(fault, Rejection)


@pytest.mark.parametrize("kind", [*REJECTIONS.values()])
def test_a_rejection_comes_back_as_it_was_raised(kind: type[CorralError]) -> None:
    context = {"job_id": "acme:1", "what": "\N{SNOWMAN}"}
    error = (
        ErrSecurityViolation((VIOLATION,), context=context)
        if kind is ErrSecurityViolation
        else kind("it is so", context=context)
    )

    again = CorralError.from_data(error.to_data())

    assert type(again) is kind
    assert again.to_data() == error.to_data()
    assert (again.retryable, again.retry_safety) == (False, "not_started")


@pytest.mark.parametrize("kind", FAULTS.values())
@pytest.mark.parametrize("safety", get_args(RetrySafety))
def test_a_fault_comes_back_as_it_was_raised_and_only_what_never_began_is_retryable(
    kind: type[Fault], safety: RetrySafety
) -> None:
    error = kind("it broke", retry_safety=safety, context={"step": "create"})

    again = CorralError.from_data(error.to_data())

    assert type(again) is kind
    assert again.to_data() == error.to_data()
    assert again.retry_safety == safety
    assert again.retryable is (safety == "not_started")


@pytest.mark.parametrize("kind", FAULTS.values())
def test_a_faults_detail_stays_in_the_worker(kind: type[Fault]) -> None:
    error = kind("it broke", detail="/srv/corral/secret")

    assert error.detail == "/srv/corral/secret"
    assert "secret" not in f"{error} {error!r} {error.to_data()}"
    again = CorralError.from_data(error.to_data())
    assert isinstance(again, Fault)
    assert again.detail == ""


def test_an_error_of_a_newer_version_keeps_its_code_and_message() -> None:
    data = ErrorData(
        code="of_tomorrow", message="too many", retryable=True, context={"tenant": "acme"}
    )

    error = CorralError.from_data(data)

    assert type(error) is CorralError
    assert error.to_data() == data
    assert CorralError.code == "error", "the class is left alone"


def test_an_invalid_job_keeps_the_path_over_the_wire() -> None:
    again = CorralError.from_data(ErrInvalidJob("no", path="$.argv[3]").to_data())

    assert isinstance(again, ErrInvalidJob)
    assert again.path == "$.argv[3]"


def test_the_context_cannot_be_changed() -> None:
    given = {"a": "1"}
    error = CorralError("no", context=given)
    given["a"] = "2"

    assert error.context == {"a": "1"}
    with pytest.raises(TypeError):
        error.context["a"] = "3"  # type: ignore[index]


def test_a_violation_reads_as_a_sentence() -> None:
    assert str(VIOLATION) == "root_user: $.user is root; allowed: nobody"
    assert str(VIOLATION) in str(ErrSecurityViolation((VIOLATION, VIOLATION)))
