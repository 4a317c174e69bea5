"""Attacks that take more than their share."""

from __future__ import annotations

from collections.abc import Iterator

from corral import Outcome, Policy, Result
from corral.policy import LimitSet
from corral_worker.prove.attack import Attack, Judge, Observed
from corral_worker.prove.guest import python
from corral_worker.prove.judges import both, ends, fact, told

_MIB = 1024**2
_BOMB_MEMORY = 64 * _MIB
_CACHE_READ = 96 * _MIB
_DISK = 16 * _MIB
_FLOOD = 48 * _MIB
_ENDLESS = 1024**4
_MOST_OUTPUT = 4 * _MIB
_ON_THEIR_WAY = 8 * _MIB
"""Output that may still come when the end was asked for: a busy worker asks late."""
_HELD_UP = 24 * _MIB
_STALL_S = 0.4
_INPUT = 12 * _MIB
_UNREAD_S = 1.0
_MOST_GROWTH = 24 * _MIB
"""Most this process may grow beyond what a job hands it."""


def _came_to_its_limit(observed: Observed) -> Iterator[str]:
    """Doubt a bomb that met no limit of tasks: it proves nothing."""
    result = observed.ending
    if isinstance(result, Result) and result.usage and result.host_limits:
        peak, limit = result.usage.peak_tasks, result.host_limits.tasks
        if peak is not None and peak < limit // 2:
            yield f"it came to {peak} tasks only, of {limit}"


def _counted(least: int) -> Judge:
    """Judge by the last number the program printed before it was ended."""

    def judge(observed: Observed) -> Iterator[str]:
        result = observed.ending
        words = result.stdout.split() if isinstance(result, Result) else []
        count = int(words[-1]) if words and words[-1].isdigit() else 0
        if count < observed.scene.sized(least):
            yield f"it came to {count} only, of at least {observed.scene.sized(least)}"

    return judge


def _was_full(observed: Observed) -> Iterator[str]:
    written = fact(observed, "written")
    if fact(observed, "no_space") != 1:
        yield "it was not told that there is no space"
    if not _DISK // 2 <= written <= _DISK:
        yield f"it wrote {written} bytes, of {_DISK}"


def _was_ended_or_has_none(observed: Observed) -> Iterator[str]:
    """Judge a guest that wants a file system without a size: gVisor need not give it one."""
    said = told(observed)
    if said and said.refused:
        yield from ends(Outcome.EXITED, exit_code=0)(observed)
    else:
        yield from ends(Outcome.DISK_EXCEEDED, Outcome.OUT_OF_MEMORY)(observed)


def _read_all(observed: Observed) -> Iterator[str]:
    wanted = observed.scene.sized(_CACHE_READ)
    if fact(observed, "read") < wanted:
        yield f"it read {fact(observed, 'read')} bytes, not {wanted}"


def _flooded(observed: Observed) -> Iterator[str]:
    result, wrote = observed.ending, observed.scene.sized(_FLOOD)
    if isinstance(result, Result):
        for name in ("stdout", "stderr"):
            counted: int = getattr(result, f"{name}_bytes")
            if counted != wrote:
                yield f"{counted} bytes of {name} were counted, not {wrote}"
    yield from _grew(observed, _MOST_GROWTH)


def _was_cut_off(observed: Observed) -> Iterator[str]:
    result = observed.ending
    if isinstance(result, Result):
        counted = result.stdout_bytes + result.stderr_bytes
        if not _MOST_OUTPUT < counted <= _MOST_OUTPUT + _ON_THEIR_WAY:
            yield f"{counted} bytes came, with a limit of {_MOST_OUTPUT}"
        yield from (
            f"nothing of {name} was kept"
            for name in ("stdout", "stderr")
            if not getattr(result, name)
        )
    yield from _grew(observed, _MOST_GROWTH)


def _was_held_up(observed: Observed) -> Iterator[str]:
    longest, wrote = fact(observed, "longest_ms"), observed.scene.sized(_HELD_UP)
    if longest < _STALL_S * 500:
        yield f"it was held up for {longest} ms only: nobody stopped reading"
    if isinstance(observed.ending, Result) and observed.ending.stderr_bytes != wrote:
        yield f"{observed.ending.stderr_bytes} bytes were counted, not {wrote}"
    yield from _grew(observed, _MOST_GROWTH)


def _grew(observed: Observed, most: int) -> Iterator[str]:
    grown = observed.worker_growth_bytes
    if grown is None:
        yield "the worker's memory was not measured"
    elif grown > most:
        yield f"the worker grew by {grown} bytes, more than {most}"


def _input_was_dropped(observed: Observed) -> Iterator[str]:
    if fact(observed, "waited") != 1:
        yield "it did not come to its end"
    # The job itself is made after the measuring began.
    yield from _grew(observed, observed.scene.sized(_INPUT) + _MOST_GROWTH)


RESOURCES = (
    Attack(
        name="fork_bomb",
        expected="held within its limits of tasks and memory, killed at one of them",
        job=lambda scene: python("fork_bomb", limits=scene.limits(wall_s=8, pids=16)),
        judge=both(
            ends(Outcome.PIDS_EXCEEDED, Outcome.WALL_TIMEOUT, Outcome.OUT_OF_MEMORY),
            _came_to_its_limit,
        ),
        neighbour=True,
    ),
    Attack(
        name="thread_bomb",
        expected="held within its limits of tasks and memory, killed at one of them",
        job=lambda scene: python("thread_bomb", limits=scene.limits(wall_s=3)),
        judge=both(
            ends(Outcome.WALL_TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.PIDS_EXCEEDED), _counted(50)
        ),
        neighbour=True,
    ),
    Attack(
        name="memory_anonymous",
        expected="out_of_memory at its limit",
        job=lambda scene: python("memory_bomb", limits=scene.limits(memory_bytes=_BOMB_MEMORY)),
        judge=ends(Outcome.OUT_OF_MEMORY),
        neighbour=True,
    ),
    Attack(
        name="memory_tmpfs",
        expected="out_of_memory at its limit: files count as memory",
        job=lambda scene: python(
            "tmpfs_bomb",
            limits=scene.limits(memory_bytes=_BOMB_MEMORY, disk_bytes=4 * _BOMB_MEMORY),
        ),
        judge=ends(Outcome.OUT_OF_MEMORY),
        neighbour=True,
    ),
    Attack(
        name="memory_page_cache",
        expected="ends by itself, within its memory limit",
        job=lambda scene: python(
            "page_cache",
            str(scene.sized(_CACHE_READ)),
            limits=scene.limits(memory_bytes=_BOMB_MEMORY),
        ),
        judge=both(ends(Outcome.EXITED, exit_code=0), _read_all),
        neighbour=True,
    ),
    Attack(
        name="disk_fill",
        expected="told that there is no space, at its disk limit",
        job=lambda scene: python("disk_fill", limits=scene.limits(disk_bytes=_DISK)),
        judge=both(ends(Outcome.EXITED, exit_code=0), _was_full),
        neighbour=True,
    ),
    Attack(
        name="disk_in_sum",
        expected="disk_exceeded: all places it may write to count together",
        job=lambda scene: python("tmpfs_bomb", limits=scene.limits(disk_bytes=_DISK)),
        judge=ends(Outcome.DISK_EXCEEDED),
    ),
    Attack(
        name="disk_of_its_own",
        expected="killed at a limit: a file system that it mounts itself is no way around them",
        job=lambda scene: python("tmpfs_of_its_own", limits=scene.limits(disk_bytes=_DISK)),
        judge=_was_ended_or_has_none,
        neighbour=True,
    ),
    Attack(
        name="inode_fill",
        expected="killed at a limit: its files are in its own memory, not on a disk of the host",
        job=lambda scene: python(
            "inode_fill", limits=scene.limits(wall_s=15, memory_bytes=_BOMB_MEMORY)
        ),
        judge=both(
            ends(Outcome.WALL_TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.DISK_EXCEEDED),
            _counted(1000),
        ),
        neighbour=True,
    ),
    Attack(
        name="output_flood",
        expected="all counted, little kept, the worker's memory bounded",
        job=lambda scene: python("output_flood", str(scene.sized(_FLOOD)), limits=scene.limits()),
        judge=both(ends(Outcome.EXITED, exit_code=0), _flooded),
        alone=True,
    ),
    Attack(
        name="output_without_end",
        expected="output_exceeded at the operator's limit, what came before it kept",
        job=lambda scene: python("output_flood", str(_ENDLESS), limits=scene.limits()),
        policy=Policy(defaults=LimitSet(output_kill_bytes=_MOST_OUTPUT)),
        judge=both(ends(Outcome.OUTPUT_EXCEEDED), _was_cut_off),
        alone=True,
    ),
    Attack(
        name="stopped_reader",
        expected="the program waits, the worker's memory is bounded, all arrives",
        job=lambda scene: python(
            "blocked_writer", str(scene.sized(_HELD_UP)), limits=scene.limits()
        ),
        judge=both(ends(Outcome.EXITED, exit_code=0), _was_held_up),
        alone=True,
        stall_s=_STALL_S,
    ),
    Attack(
        name="unread_input",
        expected="ends by itself; nobody waits for its input to be read",
        job=lambda scene: python(
            "unread",
            str(_UNREAD_S),
            limits=scene.limits(),
            stdin=b"x" * scene.sized(_INPUT),
        ),
        judge=both(ends(Outcome.EXITED, exit_code=0), _input_was_dropped),
        alone=True,
    ),
)
"""In the order in which they are told."""
