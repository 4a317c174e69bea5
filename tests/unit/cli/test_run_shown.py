"""``corral run``: what it shows, and how it exits."""

from __future__ import annotations

import json

import pytest
from support.commands import invoke_now as invoke
from support.fake_client import JOB_ID, STARTED, ends_with

from corral import (
    CorralError,
    ErrGVisorNotAvailable,
    ErrImageNotFound,
    ErrProgramNotFound,
    ErrSecurityViolation,
    Job,
    Limits,
    Outcome,
    Policy,
    Result,
)
from corral.errors import ErrorData
from corral_worker.cli import report


def test_output_and_exit_code_are_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    every_byte = bytes(range(256))
    ends_with(
        monkeypatch,
        Result(outcome=Outcome.EXITED, exit_code=7, stdout=every_byte, stderr=b"\xffno newline"),
    )
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout_bytes, invoked.stderr_bytes) == (
        7,
        every_byte,
        b"\xffno newline",
    )


def test_a_gap_is_announced_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(
        monkeypatch,
        Result(
            outcome=Outcome.EXITED, exit_code=0, stdout=b"headtail", stdout_bytes=100, stdout_gap=4
        ),
    )
    invoked = invoke("run", "true")
    assert invoked.stdout == "headtail"
    assert invoked.stderr == "corral: stdout: 92 bytes left out after the first 4\n"


LIMITS = Policy().limits(Limits(wall_s=1, memory_bytes=64 * 2**20))


@pytest.mark.parametrize(
    ("result", "code", "said"),
    [
        (Result(outcome=Outcome.EXITED, exit_code=3), 3, ""),
        (
            Result(outcome=Outcome.SIGNALLED, signal=11, duration_s=0.25),
            139,
            "signalled: ended by SIGSEGV after 0.2 s",
        ),
        (
            Result(outcome=Outcome.WALL_TIMEOUT, signal=9, duration_s=1.04, limits=LIMITS),
            124,
            "wall_timeout: killed after 1.0 s (limit: 1 s)",
        ),
        (
            Result(outcome=Outcome.CPU_TIMEOUT, duration_s=61, limits=LIMITS),
            124,
            "cpu_timeout: killed after 61.0 s (limit: 60 s of processor time)",
        ),
        (
            Result(outcome=Outcome.OUT_OF_MEMORY, duration_s=1, limits=LIMITS),
            137,
            "out_of_memory: killed after 1.0 s (limit: 64 MiB)",
        ),
        (
            Result(outcome=Outcome.PIDS_EXCEEDED, duration_s=1, limits=LIMITS),
            120,
            "pids_exceeded: ended after 1.0 s (limit: 128 processes)",
        ),
        (
            Result(outcome=Outcome.OUTPUT_EXCEEDED, duration_s=1, limits=LIMITS),
            121,
            "output_exceeded: killed after 1.0 s (limit: 1024 GiB)",
        ),
        (
            Result(outcome=Outcome.DISK_EXCEEDED, duration_s=1, limits=LIMITS),
            122,
            "disk_exceeded: killed after 1.0 s (limit: 100 MiB)",
        ),
        (
            Result(outcome=Outcome.CANCELLED, duration_s=1, started_at=STARTED),
            130,
            "cancelled: killed after 1.0 s",
        ),
        (Result(outcome=Outcome.CANCELLED), 130, "cancelled: before it started"),
        (
            Result(outcome=Outcome.EXPIRED),
            124,
            "expired: not started within the time it was given",
        ),
    ],
    ids=lambda value: (
        str(value.outcome) + str(bool(value.started_at)) if isinstance(value, Result) else None
    ),
)
def test_every_other_ending_has_an_exit_code_and_a_line(
    monkeypatch: pytest.MonkeyPatch, result: Result, code: int, said: str
) -> None:
    ends_with(monkeypatch, result)
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stderr) == (code, f"corral: {said}\n" if said else "")


def test_a_line_of_ours_begins_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, Result(outcome=Outcome.EXPIRED, stderr=b"half a line"))
    assert invoke("run", "true").stderr.startswith("half a line\ncorral: expired: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrProgramNotFound("no such program"), 127),
        (ErrImageNotFound("no such image"), 125),
        (ErrGVisorNotAvailable("no runsc"), 125),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_typed_error_is_shown_with_its_code(
    monkeypatch: pytest.MonkeyPatch, error: CorralError, code: int
) -> None:
    ends_with(monkeypatch, error)
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (code, "")
    assert invoked.stderr == f"corral: {error.code}: {error.message}\n"


def test_every_broken_rule_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(argv=("true",), privileged=True, user="root", network="host")
    violations = Policy().check(job)
    ends_with(monkeypatch, ErrSecurityViolation(violations))
    invoked = invoke("run", "true")
    assert invoked.exit_code == 125
    assert invoked.stderr.splitlines() == [
        "corral: security_violation: the job breaks 3 rule(s):",
        *(f"corral:   {violation}" for violation in violations),
    ]


def test_the_help_has_every_exit_code_there_is() -> None:
    codes = {
        report.exit_code(Result(outcome=outcome))
        for outcome in Outcome
        if outcome not in {Outcome.EXITED, Outcome.SIGNALLED}
    }
    shown = invoke("run", "--help").stdout
    assert {code for code in codes | {125, 127} if f"\n    {code} " not in shown} == set()


def test_json_is_the_whole_result_with_the_jobs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(outcome=Outcome.EXITED, exit_code=7, stdout="π\n".encode(), labels={"a": "b"})
    ends_with(monkeypatch, result)
    invoked = invoke("run", "--json", "true")
    shown = json.loads(invoked.stdout)
    assert invoked.exit_code == 7
    assert set(shown) == {"job_id", *Result.__struct_fields__}
    assert (shown["job_id"], shown["outcome"], shown["stdout"]) == (JOB_ID, "exited", "π\n")


def test_json_keeps_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(
        monkeypatch, Result(outcome=Outcome.EXITED, exit_code=0, stdout=b"a\xff", stderr=b"b")
    )
    shown = json.loads(invoke("run", "--json", "true").stdout)
    assert (shown["stdout"], shown["stdout_base64"]) == ("a\ufffd", "Yf8=")
    assert (shown["stderr"], "stderr_base64" in shown) == ("b", False)


def test_json_of_an_error_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    violations = Policy().check(Job(argv=("true",), user="root"))
    ends_with(monkeypatch, ErrSecurityViolation(violations, context={"k": "v"}))
    invoked = invoke("run", "--json", "true")
    shown = json.loads(invoked.stdout)
    assert invoked.exit_code == 125
    assert shown["job_id"] == JOB_ID
    assert set(shown["error"]) == set(ErrorData.__struct_fields__)
    assert shown["error"]["context"] == {"k": "v"}
    assert [violation["rule"] for violation in shown["error"]["violations"]] == ["root_user"]


def test_json_of_a_job_that_was_never_submitted_has_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    shown = json.loads(invoke("run", "--json", "true").stdout)
    assert (shown["job_id"], shown["error"]["code"]) == (None, "client_not_configured")
