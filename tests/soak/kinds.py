"""The jobs of a soak, and what is true of each once it has ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from corral import Job, Limits, Outcome, Result

_FLOOD_BYTES = 3_000_000
_OUTPUT_BYTES = 65_536
_MIB = 1024 * 1024


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One way to end."""

    weight: int
    job: Callable[[int], Job]
    """Makes the job of a number."""
    is_right: Callable[[int, Result], bool]
    """Whether the job of a number may have ended so."""
    cancels: bool = False
    """Whether somebody cancels it at some moment."""


def _sh(script: str, limits: Limits | None = None, stdin: bytes = b"") -> Job:
    return Job(argv=("sh", "-c", script), image="base", limits=limits or Limits(), stdin=stdin)


def _exited(result: Result, code: int, stdout: bytes) -> bool:
    own = (result.outcome, result.exit_code, result.stdout, result.truncated)
    return own == (Outcome.EXITED, code, stdout, False)


def _certified(result: Result, cause: Outcome, stdout: bytes) -> bool:
    certificate = result.termination
    return (
        (result.outcome, result.stdout) == (cause, stdout)
        and certificate is not None
        and certificate.verified_dead
        and certificate.cause is cause
    )


def _is_cancelled(result: Result) -> bool:
    """Cancelled in the queue, while its sandbox started, or while it ran."""
    certificate = result.termination
    return result.outcome is Outcome.CANCELLED and (
        certificate is None or certificate.verified_dead
    )


def _is_flood(result: Result) -> bool:
    seen = (result.outcome, result.exit_code, result.stdout_bytes, len(result.stdout))
    return seen == (Outcome.EXITED, 0, _FLOOD_BYTES, _OUTPUT_BYTES)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "succeeds": Kind(
            weight=30,
            job=lambda number: _sh(f"echo {number}"),
            is_right=lambda number, result: _exited(result, 0, b"%d\n" % number),
        ),
        "fails": Kind(
            weight=15,
            job=lambda number: _sh(f"echo {number}; exit {number % 255 + 1}"),
            is_right=lambda number, result: _exited(result, number % 255 + 1, b"%d\n" % number),
        ),
        "reads its input": Kind(
            weight=10,
            job=lambda number: _sh("wc -c", stdin=b"x" * (number * 37 % 200_000)),
            is_right=lambda number, result: _exited(result, 0, b"%d\n" % (number * 37 % 200_000)),
        ),
        "kills itself": Kind(
            weight=5,
            job=lambda _: _sh("kill -9 $$"),
            is_right=lambda _, result: (result.outcome, result.signal) == (Outcome.SIGNALLED, 9),
        ),
        "looks killed": Kind(
            weight=5,
            job=lambda _: _sh("exit 137"),
            is_right=lambda _, result: _exited(result, 137, b""),
        ),
        "runs too long": Kind(
            weight=10,
            job=lambda number: _sh(f"echo {number}; sleep 60", Limits(wall_s=0.5)),
            is_right=lambda number, result: _certified(
                result, Outcome.WALL_TIMEOUT, b"%d\n" % number
            ),
        ),
        "ignores signals": Kind(
            weight=4,
            job=lambda _: _sh("trap '' TERM INT HUP; while :; do :; done", Limits(wall_s=0.5)),
            is_right=lambda _, result: _certified(result, Outcome.WALL_TIMEOUT, b""),
        ),
        "burns": Kind(
            weight=4,
            job=lambda _: _sh("while :; do :; done", Limits(cpu_time_s=0.5, wall_s=60)),
            is_right=lambda _, result: _certified(result, Outcome.CPU_TIMEOUT, b""),
        ),
        "is cancelled": Kind(
            weight=20,
            job=lambda number: _sh(f"sleep 0.7; echo {number}"),
            is_right=lambda number, result: (
                _is_cancelled(result) or _exited(result, 0, b"%d\n" % number)
            ),
            cancels=True,
        ),
        "fills its memory": Kind(
            weight=5,
            job=lambda _: _sh(
                "dd if=/dev/zero of=/tmp/bomb bs=1M count=200",
                Limits(memory_bytes=64 * _MIB, disk_bytes=256 * _MIB),
            ),
            is_right=lambda _, result: result.outcome is Outcome.OUT_OF_MEMORY,
        ),
        "floods": Kind(
            weight=5,
            job=lambda _: _sh(f"yes | head -c {_FLOOD_BYTES}", Limits(output_bytes=_OUTPUT_BYTES)),
            is_right=lambda _, result: _is_flood(result),
        ),
        "leaves survivors": Kind(
            weight=5,
            job=lambda number: _sh(
                f"setsid sleep 60 >/dev/null 2>&1 & setsid sleep 60 & echo {number}"
            ),
            is_right=lambda number, result: _exited(result, 0, b"%d\n" % number),
        ),
    }
)


def draw(chance: random.Random) -> str:
    """Return the name of a kind, the heavier the likelier."""
    (name,) = chance.choices(list(KINDS), [kind.weight for kind in KINDS.values()])
    return name
