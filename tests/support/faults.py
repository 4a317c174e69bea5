"""Endings on a host that fails."""

from __future__ import annotations

from pathlib import Path

from corral import (
    EffectiveLimits,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    Fault,
    Job,
    Outcome,
)
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.stop import Stop

LIMITS = EffectiveLimits(wall_s=40)
HELLO = Job(argv=("echo", "hello"))
DONE = Ending(outcome=Outcome.EXITED, exit_code=0)


async def ending_of(sandboxes: ColdStart, rootfs: Path, job: Job = HELLO) -> Ending | BaseException:
    """Return how a job ended, be it by a report or by an error."""
    try:
        report = await sandboxes.run(job, LIMITS, rootfs, Stop())
    except Fault as error:
        return error
    return report.ending


def assert_told_truly(ending: Ending | BaseException) -> None:
    """Succeeded, or a fault that says whether the program had begun; nothing in between."""
    if isinstance(ending, Ending):
        assert ending == DONE
        return
    assert type(ending) in {ErrSandboxCreationFailed, ErrSandboxExecutionFailed}
    assert isinstance(ending, Fault)
    assert ending.detail or ending.message
    assert ending.retryable == (ending.retry_safety == "not_started")
