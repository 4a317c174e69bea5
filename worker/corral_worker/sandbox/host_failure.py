"""What the host's kernel refuses in the middle of a sandbox's life, as typed faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from corral import ErrSandboxCreationFailed, ErrSandboxExecutionFailed
from corral_worker.sandbox.ladder import Life


@contextmanager
def host_failures(life: Life) -> Iterator[None]:
    """Turn errors of the host, such as no file descriptor left, into faults.

    By the end of the block the sandbox must be dead: only then is it known how
    far it had come.

    Raises:
        ErrSandboxCreationFailed: the program had not been seen running.
        ErrSandboxExecutionFailed: it had.
    """
    try:
        yield
    except OSError as error:
        raise _fault(life, error) from error
    except ExceptionGroup as group:
        # Only if it is nothing but that: a mistake of ours is not to look like the host's.
        matching, others = group.split(OSError)
        if matching is None or others is not None:
            raise
        raise _fault(life, _first(matching)) from group


def _fault(life: Life, error: OSError) -> ErrSandboxCreationFailed | ErrSandboxExecutionFailed:
    why = error.strerror or type(error).__name__
    if life.running is not None:
        return ErrSandboxExecutionFailed(
            f"the host failed while the program ran: {why}",
            retry_safety="started",
            detail=str(error),
        )
    return ErrSandboxCreationFailed(
        f"the host failed while the sandbox was being started: {why}",
        retry_safety="unknown" if life.created else "not_started",
        detail=str(error),
    )


def _first(group: ExceptionGroup[OSError]) -> OSError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
