"""Decides, from evidence alone, how a program ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from corral import (
    CorralError,
    ErrInvalidJob,
    ErrProgramNotFound,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    ErrWorkerLost,
    Outcome,
)
from corral.errors import RetrySafety

KillCause = Literal[
    "wall_timeout",
    "cpu_timeout",
    "output_exceeded",
    "disk_exceeded",
    "cancelled",
    "start_timeout",
    "shutdown",
    "unenforceable",
]
"""Why corral itself ended a sandbox."""

OUTCOME_OF_KILL: Mapping[KillCause, Outcome] = MappingProxyType(
    {
        "wall_timeout": Outcome.WALL_TIMEOUT,
        "cpu_timeout": Outcome.CPU_TIMEOUT,
        "output_exceeded": Outcome.OUTPUT_EXCEEDED,
        "disk_exceeded": Outcome.DISK_EXCEEDED,
        "cancelled": Outcome.CANCELLED,
    }
)
"""What a kill means for the job. Left out: those that are our own fault."""

_DETAIL_LENGTH = 500
# The kernel charges memory in batches: the peak may stay a little below the limit.
_NEAR = 0.95
# runsc's words for a program that is not there, or not to be executed.
_NO_PROGRAM = (
    "error finding executable",
    "no such file or directory",
    "permission denied",
    "not a directory",
    "file name too long",
    "too many levels of symbolic links",
    "too many symbolic links",
    "exec format error",
    "invalid argument",
)
_NO_DIRECTORY = "initial working directory"
_LOADING = ("starting sandbox: ", "failed to load ")
# What comes after these is the job's own.
_OF_PROGRAM = ("failed to load ", "failed to find executable ", "error finding executable ")
# The sentry dies if the host refuses a thread for another process of the guest.
_NO_MORE_TASKS = "failed to get clone"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when a sandbox has ended."""

    started: bool
    """Whether the program was seen running."""
    created: bool = False
    """Whether runsc had the sandbox ready: the program may have begun, unseen."""
    status: int
    """How the ``runsc`` process ended: exit code, or minus a signal's number."""
    wait_status: int | None = None
    """The program's own wait status (wait(2)) as runsc noted it; None if the sentry, which
    alone knows it, died first."""
    kill: KillCause | None = None
    """Our own kill record."""
    oom_kills: int = 0
    peak_memory_bytes: int = 0
    memory_limit_bytes: int = 0
    peak_tasks: int | None = None
    tasks_limit: int = 0
    panic: str = ""
    """Last words of the sentry."""
    errors: tuple[str, ...] = ()
    """Errors that runsc logged."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended."""

    outcome: Outcome
    exit_code: int | None = None
    signal: int | None = None


def decide(evidence: Evidence) -> Ending | CorralError:
    """Return how the program ended, or the error that kept it from starting or ending.

    The first line that fits wins:

    ==  ==============================================  =============================
    1   never started, we cancelled it                  cancelled
    2   never started, the worker was stopped           ErrWorkerLost
    3   never started, not within its budget            ErrSandboxCreationFailed
    4   never started, directory missing                ErrInvalidJob
    5   never started, program missing                  ErrProgramNotFound
    6   never started, killed at its memory limit       out_of_memory
    7   never started, anything else                    ErrSandboxCreationFailed
    8   exited with 0 by its own wait status            exited
    9   we killed it and it died of that                our kill's cause
    10  killed at its memory limit, it did not exit 0   out_of_memory
    11  killed for memory, but not at its own limit     ErrSandboxExecutionFailed
    12  panic for want of host threads, at the limit    pids_exceeded
    13  its own wait status is known                    exited or signalled
    14  panic, or runsc failed                          ErrSandboxExecutionFailed
    ==  ==============================================  =============================
    """
    if not evidence.started:
        return _never_started(evidence)
    if evidence.wait_status is not None and evidence.wait_status == 0:
        return Ending(outcome=Outcome.EXITED, exit_code=0)
    if evidence.kill is not None and _was_killed(evidence):
        return _killed(evidence.kill)
    if _out_of_memory(evidence):
        return Ending(outcome=Outcome.OUT_OF_MEMORY, **_own(evidence))
    if evidence.oom_kills > 0:
        return ErrSandboxExecutionFailed(
            "the host ran out of memory and killed the sandbox, which was below its own limit",
            retry_safety="started",
            detail=_detail(evidence),
        )
    if _out_of_tasks(evidence):
        return Ending(outcome=Outcome.PIDS_EXCEEDED)
    own = _own(evidence)
    if "exit_code" in own and not evidence.panic:
        return Ending(outcome=Outcome.EXITED, **own)
    if "signal" in own and not evidence.panic:
        return Ending(outcome=Outcome.SIGNALLED, **own)
    return ErrSandboxExecutionFailed(
        "the sandbox broke while the program ran: the worker's log says why",
        retry_safety="started",
        detail=_detail(evidence),
    )


def _never_started(evidence: Evidence) -> Ending | CorralError:
    safety: RetrySafety = "unknown" if evidence.created else "not_started"
    if evidence.kill == "cancelled":
        return Ending(outcome=Outcome.CANCELLED)
    if evidence.kill == "shutdown":
        return ErrWorkerLost(
            "the worker was stopped before the program was seen running", retry_safety=safety
        )
    if evidence.kill == "start_timeout":
        return ErrSandboxCreationFailed(
            "the sandbox did not start within its budget: the host is overloaded, or runsc hangs",
            retry_safety=safety,
        )
    for message in evidence.errors:
        if _has_no_directory(message):
            return ErrInvalidJob("the directory is not in the image", path="$.cwd")
        if any(m in message for m in _LOADING) and any(m in message for m in _NO_PROGRAM):
            _, words, reason = message.partition("starting sandbox: ")
            return ErrProgramNotFound(
                "the program cannot be executed in this image:"
                f" {(reason if words else message)[:_DETAIL_LENGTH]}"
            )
    if _out_of_memory(evidence):
        return Ending(outcome=Outcome.OUT_OF_MEMORY)
    return ErrSandboxCreationFailed(
        "the sandbox could not be started: the worker's log says why",
        retry_safety=safety,
        detail=_detail(evidence),
    )


def _has_no_directory(message: str) -> bool:
    before, words, _ = message.partition(_NO_DIRECTORY)
    return bool(words) and not any(other in before for other in _OF_PROGRAM)


def _was_killed(evidence: Evidence) -> bool:
    if evidence.wait_status is not None:
        return os.WIFSIGNALED(evidence.wait_status)
    return True


def _killed(cause: KillCause) -> Ending | CorralError:
    outcome = OUTCOME_OF_KILL.get(cause)
    if cause == "start_timeout":
        return ErrSandboxCreationFailed(
            "the program started when the budget for starting the sandbox was used up: the host"
            " is overloaded",
            retry_safety="started",
        )
    if cause == "unenforceable":
        return ErrSandboxExecutionFailed(
            "the program was killed, for its limit of disk could not be watched on this host: the"
            " worker's log says why",
            retry_safety="started",
        )
    if outcome is None:
        return ErrWorkerLost(
            "the worker was stopped while the program ran: submit the job again if running it"
            " twice is harmless, or allow it more attempts",
            retry_safety="started",
        )
    return Ending(outcome=outcome, signal=int(signal.SIGKILL))


def _own(evidence: Evidence) -> dict[str, int]:
    status = evidence.wait_status
    if status is None:
        return {}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit_code": os.WEXITSTATUS(status)}


def _out_of_memory(evidence: Evidence) -> bool:
    # Far below the sandbox's own limit it was one above it, or the host's memory.
    peak = evidence.peak_memory_bytes
    # No kernel before Linux 5.19 keeps a peak in version 2: its own limit is the likelier one.
    near = peak == 0 or peak >= _NEAR * evidence.memory_limit_bytes
    return evidence.oom_kills > 0 and near


def _out_of_tasks(evidence: Evidence) -> bool:
    # What the panic says depends on which thread was refused: the count decides.
    if evidence.peak_tasks is not None:
        return bool(evidence.panic) and evidence.peak_tasks >= evidence.tasks_limit
    return _NO_MORE_TASKS in evidence.panic


def _detail(evidence: Evidence) -> str:
    if evidence.panic:
        first, _, _ = evidence.panic.strip().partition("\n")
        return f"the sentry panicked: {first[:_DETAIL_LENGTH]}"
    if evidence.errors:
        return evidence.errors[-1][:_DETAIL_LENGTH]
    if evidence.status < 0:
        return f"runsc was ended by signal {-evidence.status}"
    return f"runsc ended with {evidence.status}"
