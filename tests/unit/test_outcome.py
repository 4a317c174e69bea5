"""How each evidence decides, row by row of the table."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.evidence import (
    EXIT_0,
    EXIT_3,
    EXIT_137,
    FULL,
    LOADING,
    MISSING,
    NEVER,
    NEVER_FULL,
    NO_DIRECTORY,
    NOT_EXECUTABLE,
    NOT_FOUND,
    PANIC,
    RAN,
    SIGKILL,
    SIGSEGV,
    ending,
)

from corral import (
    CorralError,
    ErrInvalidJob,
    ErrProgramNotFound,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    ErrWorkerLost,
    Fault,
    Outcome,
)
from corral_worker.sandbox.outcome import Ending, Evidence, decide


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        pytest.param(
            replace(NEVER, kill="cancelled"),
            ending(Outcome.CANCELLED),
            id="1: cancelled before its start",
        ),
        pytest.param(
            replace(NEVER_FULL, kill="cancelled", errors=(NOT_FOUND,)),
            ending(Outcome.CANCELLED),
            id="1 before 4 to 6",
        ),
        pytest.param(
            replace(NEVER_FULL, panic="panic: EOF"),
            ending(Outcome.OUT_OF_MEMORY),
            id="6: too little memory to boot",
        ),
        pytest.param(
            replace(RAN, wait_status=EXIT_0), ending(Outcome.EXITED, 0), id="8: exited with 0"
        ),
        pytest.param(
            replace(FULL, wait_status=EXIT_0, kill="wall_timeout", panic=PANIC),
            ending(Outcome.EXITED, 0),
            id="8 before all that follow",
        ),
        pytest.param(
            replace(RAN, kill="wall_timeout", wait_status=SIGKILL),
            ending(Outcome.WALL_TIMEOUT, signal=9),
            id="9: killed for its time",
        ),
        pytest.param(
            replace(RAN, kill="cpu_timeout", status=-9),
            ending(Outcome.CPU_TIMEOUT, signal=9),
            id="9: killed without a word of runsc",
        ),
        pytest.param(
            replace(RAN, kill="output_exceeded", status=137),
            ending(Outcome.OUTPUT_EXCEEDED, signal=9),
            id="9: killed for its output",
        ),
        pytest.param(
            replace(RAN, kill="disk_exceeded", wait_status=SIGKILL),
            ending(Outcome.DISK_EXCEEDED, signal=9),
            id="9: killed for its files",
        ),
        pytest.param(
            replace(FULL, kill="disk_exceeded", status=137),
            ending(Outcome.DISK_EXCEEDED, signal=9),
            id="9 before 10, for files are in memory",
        ),
        pytest.param(
            replace(FULL, kill="cancelled", wait_status=SIGKILL, panic=PANIC),
            ending(Outcome.CANCELLED, signal=9),
            id="9 before 10 to 12",
        ),
        pytest.param(
            replace(RAN, kill="cancelled", wait_status=EXIT_3),
            ending(Outcome.EXITED, 3),
            id="not 9: it was faster than its killer",
        ),
        pytest.param(
            replace(FULL, status=137),
            ending(Outcome.OUT_OF_MEMORY),
            id="10: the sentry was killed for memory",
        ),
        pytest.param(
            replace(FULL, wait_status=EXIT_3),
            ending(Outcome.OUT_OF_MEMORY, 3),
            id="10: a child was, and it took that badly",
        ),
        pytest.param(
            replace(FULL, panic=PANIC, peak_tasks=60),
            ending(Outcome.OUT_OF_MEMORY),
            id="10 before 11 and 12",
        ),
        pytest.param(
            replace(FULL, peak_memory_bytes=0, status=137),
            ending(Outcome.OUT_OF_MEMORY),
            id="10: where the kernel keeps no peak, its own limit is likelier than the host's",
        ),
        pytest.param(
            replace(FULL, oom_kills=0, wait_status=EXIT_3),
            ending(Outcome.EXITED, 3),
            id="not 10: a full sandbox that nobody was killed in",
        ),
        pytest.param(
            replace(RAN, panic=PANIC, peak_tasks=60, status=2),
            ending(Outcome.PIDS_EXCEEDED),
            id="12: too many processes",
        ),
        pytest.param(
            replace(RAN, panic="panic: of another kind", peak_tasks=61, status=2),
            ending(Outcome.PIDS_EXCEEDED),
            id="12: the count decides, not the words",
        ),
        pytest.param(
            replace(RAN, panic=PANIC, peak_tasks=None, status=2),
            ending(Outcome.PIDS_EXCEEDED),
            id="12: the words decide where there is no count",
        ),
        pytest.param(
            replace(RAN, wait_status=EXIT_3, peak_tasks=60),
            ending(Outcome.EXITED, 3),
            id="13: at the limit of processes, which is no crime",
        ),
        pytest.param(
            replace(RAN, wait_status=EXIT_137, status=137),
            ending(Outcome.EXITED, 137),
            id="13: an exit code that looks like a signal",
        ),
        pytest.param(
            replace(RAN, wait_status=SIGKILL, status=137),
            ending(Outcome.SIGNALLED, signal=9),
            id="13: a signal of its own",
        ),
        pytest.param(
            replace(RAN, wait_status=SIGSEGV, status=139),
            ending(Outcome.SIGNALLED, signal=11),
            id="13: a signal with a core",
        ),
    ],
)
def test_what_is_known_decides_how_a_program_ended(evidence: Evidence, expected: Ending) -> None:
    assert decide(evidence) == expected


@pytest.mark.parametrize(
    ("evidence", "error", "retry_safety"),
    [
        pytest.param(
            replace(NEVER, kill="shutdown"), ErrWorkerLost, "not_started", id="2: stopped in time"
        ),
        pytest.param(
            replace(NEVER, kill="shutdown", created=True),
            ErrWorkerLost,
            "unknown",
            id="2: stopped when it may have begun",
        ),
        pytest.param(
            replace(NEVER_FULL, kill="start_timeout"),
            ErrSandboxCreationFailed,
            "not_started",
            id="3: too slow",
        ),
        pytest.param(
            replace(NEVER, kill="start_timeout", created=True),
            ErrSandboxCreationFailed,
            "unknown",
            id="3: too slow, but it may have begun",
        ),
        *(
            pytest.param(
                replace(NEVER_FULL, errors=(message,), created=True),
                ErrProgramNotFound,
                "not_started",
                id=f"5: {words}",
            )
            for words, message in (
                ("missing", MISSING),
                ("not on the path", NOT_FOUND),
                ("not executable", NOT_EXECUTABLE),
                ("below a file", f"{LOADING} /etc/passwd/x: not a directory"),
                ("too long", f"{LOADING} {'x' * 5000}: file name too long"),
                ("a loop of links", f"{LOADING} /x: too many levels of symbolic links"),
                ("of another machine", f"{LOADING} /x: exec format error"),
                ("of no file", f"{LOADING} /proc/self/exe: invalid argument"),
                (
                    "named like a reason",
                    f"{LOADING} /initial working directory: no such file or directory",
                ),
                ("named like another", NOT_FOUND.replace('"x"', '"initial working directory"')),
            )
        ),
        pytest.param(
            replace(NEVER_FULL, errors=(NO_DIRECTORY, NOT_FOUND), created=True),
            ErrInvalidJob,
            "not_started",
            id="4 before 5 and 6",
        ),
        pytest.param(
            replace(NEVER, oom_kills=1),
            ErrSandboxCreationFailed,
            "not_started",
            id="7: killed for memory that was not its own",
        ),
        pytest.param(
            replace(NEVER, errors=("cannot make cgroup: no such file or directory",)),
            ErrSandboxCreationFailed,
            "not_started",
            id="7: words of another error",
        ),
        pytest.param(NEVER, ErrSandboxCreationFailed, "not_started", id="7: nothing is known"),
        pytest.param(
            replace(NEVER, kill="wall_timeout"),
            ErrSandboxCreationFailed,
            "not_started",
            id="7: another cause",
        ),
        pytest.param(
            replace(NEVER, panic="panic: x", created=True),
            ErrSandboxCreationFailed,
            "unknown",
            id="7: it may have begun",
        ),
        pytest.param(
            replace(RAN, kill="shutdown", wait_status=SIGKILL),
            ErrWorkerLost,
            "started",
            id="9: the worker was stopped",
        ),
        pytest.param(
            replace(RAN, kill="start_timeout", wait_status=SIGKILL),
            ErrSandboxCreationFailed,
            "started",
            id="9: it started when the budget for that was used up",
        ),
        pytest.param(
            replace(RAN, kill="unenforceable", wait_status=SIGKILL),
            ErrSandboxExecutionFailed,
            "started",
            id="9: a limit could not be watched",
        ),
        pytest.param(
            replace(RAN, oom_kills=1, status=137),
            ErrSandboxExecutionFailed,
            "started",
            id="11: the host's memory was short",
        ),
        pytest.param(
            replace(RAN, oom_kills=1, wait_status=EXIT_3, panic=PANIC, peak_tasks=60),
            ErrSandboxExecutionFailed,
            "started",
            id="11 before 12 and 13",
        ),
        pytest.param(
            replace(RAN, status=2, panic="panic: x"),
            ErrSandboxExecutionFailed,
            "started",
            id="14: the sentry panicked",
        ),
        pytest.param(
            replace(RAN, status=2, panic=PANIC, peak_tasks=59),
            ErrSandboxExecutionFailed,
            "started",
            id="14: below the limit of processes",
        ),
        pytest.param(
            replace(RAN, wait_status=EXIT_3, panic="panic: x"),
            ErrSandboxExecutionFailed,
            "started",
            id="14 before 13 if there was a panic",
        ),
        pytest.param(
            replace(RAN, status=128), ErrSandboxExecutionFailed, "started", id="14: runsc failed"
        ),
        pytest.param(
            replace(RAN, status=0),
            ErrSandboxExecutionFailed,
            "started",
            id="14: runsc's own 0 is not the program's",
        ),
    ],
)
def test_what_is_our_fault_says_whether_the_program_may_have_begun(
    evidence: Evidence, error: type[CorralError], retry_safety: str
) -> None:
    decided = decide(evidence)

    assert type(decided) is error
    assert decided.retry_safety == retry_safety


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (replace(NEVER, errors=("first", "last")), "last"),
        (replace(NEVER, panic="\npanic: at the disco\ngoroutine 1"), "panic: at the disco"),
        (replace(NEVER, status=-9), "ended by signal 9"),
        (replace(NEVER, status=128), "ended with 128"),
        (replace(RAN, status=-6), "ended by signal 6"),
        (replace(RAN, oom_kills=1, status=-9), "ended by signal 9"),
    ],
)
def test_a_faults_detail_says_what_is_known_and_only_the_workers_log_gets_it(
    evidence: Evidence, words: str
) -> None:
    decided = decide(evidence)

    assert isinstance(decided, Fault)
    assert words in decided.detail
    assert words not in str(decided.to_data())


def test_a_host_that_ran_out_of_memory_is_named() -> None:
    decided = decide(replace(RAN, oom_kills=1))

    assert isinstance(decided, CorralError)
    assert "the host ran out of memory" in decided.message


def test_a_program_that_cannot_be_executed_is_named_and_so_is_the_reason() -> None:
    decided = decide(replace(NEVER, errors=(NOT_FOUND,)))

    assert isinstance(decided, CorralError)
    assert 'error finding executable "x"' in decided.message


def test_a_missing_directory_is_named_by_its_field() -> None:
    decided = decide(replace(NEVER, errors=(NO_DIRECTORY,)))

    assert isinstance(decided, ErrInvalidJob)
    assert decided.path == "$.cwd"


@pytest.mark.parametrize("message", ["x" * 100_000, f"{LOADING} {'x' * 100_000}: not a directory"])
def test_an_error_is_short_however_long_the_log_is(message: str) -> None:
    decided = decide(replace(NEVER, errors=(message,)))

    assert isinstance(decided, CorralError)
    assert len(decided.message) < 1000
    assert not isinstance(decided, Fault) or len(decided.detail) < 1000
