"""The result."""

from __future__ import annotations

import asyncio

import pytest

from corral import JobCancelled, Outcome, Result


def test_the_ways_a_program_can_end_are_a_closed_set() -> None:
    assert {outcome.value for outcome in Outcome} == {
        "exited",
        "signalled",
        "wall_timeout",
        "cpu_timeout",
        "out_of_memory",
        "pids_exceeded",
        "output_exceeded",
        "disk_exceeded",
        "cancelled",
        "expired",
    }


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("exit_code", [None, 0, 1, 137])
def test_only_a_program_that_exited_with_0_is_ok(outcome: Outcome, exit_code: int | None) -> None:
    expected = outcome is Outcome.EXITED and exit_code == 0

    assert Result(outcome=outcome, exit_code=exit_code).ok is expected


def test_a_cancelled_job_is_a_cancellation_that_holds_the_partial_output() -> None:
    result = Result(outcome=Outcome.CANCELLED, stdout=b"so far")

    error = JobCancelled(result)

    assert isinstance(error, asyncio.CancelledError)
    assert not isinstance(error, Exception), "no 'except Exception' may swallow it"
    assert error.result is result
