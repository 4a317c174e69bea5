"""What a person, a shell and a program are told of how a job ended. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import MappingProxyType

import msgspec

from corral import CorralError, ErrProgramNotFound, ErrSecurityViolation, Outcome, Result
from corral_worker.cli.units import size_text

FAILED = 125
"""Exit status if corral itself refused or failed."""
TIMED_OUT = 124
"""Exit status if the time was up, as of timeout(1)."""

EXIT_CODES = """\
\b
Exit codes:
  the program's own  it exited by itself
  120                it exceeded its limit of processes
  121                it wrote more than it may
  122                it filled its writable directories
  124                it ran, or waited, longer than it may
  125                corral refused it or failed; also wrong options
  127                the image has no such program
  130                it was cancelled, or Ctrl-C was pressed here
  137                it ran out of memory
  128 + n            signal n ended it
"""

_LIMITS = MappingProxyType(
    {
        Outcome.WALL_TIMEOUT: "wall_s",
        Outcome.CPU_TIMEOUT: "cpu_time_s",
        Outcome.OUT_OF_MEMORY: "memory_bytes",
        Outcome.PIDS_EXCEEDED: "pids",
        Outcome.OUTPUT_EXCEEDED: "output_kill_bytes",
        Outcome.DISK_EXCEEDED: "disk_bytes",
    }
)
_UNITS = MappingProxyType({"wall_s": "s", "cpu_time_s": "s of processor time", "pids": "processes"})


def exit_code(ending: Result | CorralError) -> int:
    """Return the exit status that tells a shell how a job ended."""
    if isinstance(ending, CorralError):
        return 127 if isinstance(ending, ErrProgramNotFound) else FAILED
    match ending.outcome:
        case Outcome.EXITED:
            return FAILED if ending.exit_code is None else ending.exit_code
        case Outcome.SIGNALLED:
            return 128 + (ending.signal or 0)
        case Outcome.WALL_TIMEOUT | Outcome.CPU_TIMEOUT | Outcome.EXPIRED:
            return TIMED_OUT
        case Outcome.OUT_OF_MEMORY:
            return 128 + signal.SIGKILL
        case Outcome.CANCELLED:
            return 128 + signal.SIGINT
        case Outcome.PIDS_EXCEEDED:
            return 120
        case Outcome.OUTPUT_EXCEEDED:
            return 121
        case Outcome.DISK_EXCEEDED:
            return 122


def lines(ending: Result | CorralError) -> Iterator[str]:
    """Yield what there is to say about an ending beyond the program's own output."""
    if isinstance(ending, CorralError):
        yield from error_lines(ending)
        return
    for name in ("stdout", "stderr"):
        gap: int | None = getattr(ending, f"{name}_gap")
        if gap is not None:
            missing: int = getattr(ending, f"{name}_bytes") - len(getattr(ending, name))
            yield f"{name}: {missing} bytes left out after the first {gap}"
    if ending.outcome is not Outcome.EXITED:
        yield f"{ending.outcome}: {_how(ending)}"


def error_lines(error: CorralError) -> Iterator[str]:
    """Yield an error's code and message, and each rule that was broken on a line of its own."""
    if isinstance(error, ErrSecurityViolation):
        yield f"{error.code}: the job breaks {len(error.violations)} rule(s):"
        for violation in error.violations:
            yield f"  {violation}"
    elif error.code == CorralError.code:
        yield error.message
    else:
        yield f"{error.code}: {error.message}"


def as_json(job_id: str | None, ending: Result | CorralError) -> bytes:
    """Return one JSON object: the whole result, or the error, with the job's id.

    Output is text; where that loses bytes, ``stdout_base64`` and
    ``stderr_base64`` hold them.
    """
    shown: dict[str, object] = {"job_id": job_id}
    if isinstance(ending, CorralError):
        shown["error"] = ending.to_data()
        return msgspec.json.encode(shown)
    fields: dict[str, object] = msgspec.to_builtins(ending)
    for name, data in (("stdout", ending.stdout), ("stderr", ending.stderr)):
        text = data.decode(errors="replace")
        if text.encode() != data:
            fields[f"{name}_base64"] = fields[name]
        fields[name] = text
    return msgspec.json.encode(shown | fields)


def _how(result: Result) -> str:
    after = f"after {result.duration_s:.1f} s"
    match result.outcome:
        case Outcome.EXPIRED:
            return "not started within the time it was given"
        case Outcome.CANCELLED if result.started_at is None:
            return "before it started"
        case Outcome.SIGNALLED:
            return f"ended by {_signal_name(result.signal)} {after}"
        case Outcome.EXITED | Outcome.PIDS_EXCEEDED:
            return f"ended {after}{_limit(result)}"
        case _:
            return f"killed {after}{_limit(result)}"


def _limit(result: Result) -> str:
    name = _LIMITS.get(result.outcome)
    if name is None or result.limits is None:
        return ""
    value: float = getattr(result.limits, name)
    if name.endswith("_bytes"):
        return f" (limit: {size_text(int(value))})"
    return f" (limit: {value:g} {_UNITS[name]})"


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
