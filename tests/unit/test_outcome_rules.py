"""What holds for any evidence."""

from __future__ import annotations

import os
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.evidence import (
    EXIT_0,
    EXIT_3,
    FULL,
    MISSING,
    NO_DIRECTORY,
    NOT_FOUND,
    PANIC,
    RAN,
    SIGKILL,
    ending,
)

from corral import CorralError, Fault, Outcome
from corral_worker.sandbox.outcome import OUTCOME_OF_KILL, Ending, Evidence, KillCause, decide

WAIT_STATUSES = st.one_of(
    st.none(),
    st.integers(0, 255).map(lambda code: code << 8),
    st.integers(1, 64),
    st.integers(1, 64).map(lambda number: number | 0x80),
)
KILL_CAUSES: st.SearchStrategy[KillCause | None] = st.sampled_from([None, *get_args(KillCause)])
EVIDENCE = st.builds(
    Evidence,
    started=st.booleans(),
    created=st.booleans(),
    status=st.integers(-64, 255),
    wait_status=WAIT_STATUSES,
    kill=KILL_CAUSES,
    oom_kills=st.integers(0, 3),
    peak_memory_bytes=st.integers(0, 100),
    memory_limit_bytes=st.integers(1, 100),
    peak_tasks=st.none() | st.integers(0, 100),
    tasks_limit=st.integers(0, 100),
    panic=st.sampled_from(["", PANIC, "panic: x", "\n"]),
    errors=st.lists(
        st.sampled_from([MISSING, NOT_FOUND, NO_DIRECTORY, "other", ""]) | st.text()
    ).map(tuple),
)


@given(EVIDENCE)
def test_every_evidence_decides(evidence: Evidence) -> None:
    decided = decide(evidence)

    assert isinstance(decided, Ending | CorralError)
    if isinstance(decided, Ending):
        assert decided.exit_code is None or decided.signal is None
        assert (decided.outcome is Outcome.SIGNALLED) <= (decided.signal is not None)
        assert (decided.outcome is Outcome.EXITED) <= (decided.exit_code is not None)


@given(EVIDENCE)
def test_a_program_that_exited_with_0_did(evidence: Evidence) -> None:
    succeeded = replace(evidence, started=True, wait_status=0)

    assert decide(succeeded) == ending(Outcome.EXITED, 0)


@given(EVIDENCE)
def test_success_is_never_made_up(evidence: Evidence) -> None:
    decided = decide(evidence)

    if isinstance(decided, Ending) and decided.exit_code == 0:
        assert evidence.wait_status == 0


@given(EVIDENCE)
def test_our_kill_is_the_cause_if_and_only_if_the_program_died_of_it(evidence: Evidence) -> None:
    decided = decide(evidence)
    meant = OUTCOME_OF_KILL.get(evidence.kill) if evidence.kill else None
    status = evidence.wait_status
    died = status is None or os.WIFSIGNALED(status)

    if evidence.started and meant is not None:
        assert (isinstance(decided, Ending) and decided.outcome is meant) == died
    elif isinstance(decided, Ending):
        allowed = {Outcome.CANCELLED} if evidence.kill == "cancelled" else set[Outcome]()
        assert decided.outcome not in set(OUTCOME_OF_KILL.values()) - allowed


@given(EVIDENCE)
def test_a_fault_is_retryable_only_if_the_program_cannot_have_begun(evidence: Evidence) -> None:
    decided = decide(evidence)

    if isinstance(decided, Fault):
        begun = evidence.started or evidence.created
        assert decided.retryable == (decided.retry_safety == "not_started") == (not begun)
        assert (decided.retry_safety == "started") == evidence.started


@given(EVIDENCE)
def test_a_program_that_never_started_has_no_exit_code(evidence: Evidence) -> None:
    decided = decide(replace(evidence, started=False))

    if isinstance(decided, Ending):
        assert (decided.exit_code, decided.signal) == (None, None)


@given(EVIDENCE)
def test_nobody_is_out_of_memory_without_a_kill_for_memory(evidence: Evidence) -> None:
    decided = decide(replace(evidence, oom_kills=0))

    assert not isinstance(decided, Ending) or decided.outcome is not Outcome.OUT_OF_MEMORY


@given(EVIDENCE)
def test_nothing_but_our_own_kill_is_a_limit_exceeded_that_only_we_watch(
    evidence: Evidence,
) -> None:
    decided = decide(replace(evidence, kill=None))

    assert not isinstance(decided, Ending) or decided.outcome not in OUTCOME_OF_KILL.values()


def test_every_outcome_but_expired_is_some_evidences() -> None:
    # A job expires before there is a sandbox to have evidence of.
    decisions = [
        decide(replace(ran, kill=kill, wait_status=status))
        for ran in (RAN, FULL, replace(RAN, panic=PANIC, peak_tasks=RAN.tasks_limit))
        for kill in (None, *get_args(KillCause))
        for status in (None, EXIT_0, EXIT_3, SIGKILL)
    ]

    found = {decided.outcome for decided in decisions if isinstance(decided, Ending)}
    assert found == set(Outcome) - {Outcome.EXPIRED}
