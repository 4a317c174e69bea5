"""Attacks that do not end, lie about how they do, or bring what no program should come of."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

from corral import Job, Outcome, Result
from corral_worker.prove.attack import Attack, Judge, Observed, Scene
from corral_worker.prove.guest import python
from corral_worker.prove.judges import both, ends, fact, is_rejected

_UP = "../" * 20
_ARGUMENTS, _ARGUMENT_BYTES = 7_000, 100
_VARIABLES, _VARIABLE_BYTES = 2_000, 400
_TOO_MANY_BYTES = 1024 * 1024


def _said(line: bytes) -> Judge:
    def judge(observed: Observed) -> Iterator[str]:
        if isinstance(observed.ending, Result) and observed.ending.stdout != line:
            yield f"it said {observed.ending.stdout[:100]!r}, not {line!r}"

    return judge


def _ended_soon(observed: Observed) -> Iterator[str]:
    result, most = observed.ending, observed.scene.seconds(30)
    if isinstance(result, Result) and result.duration_s > most:
        yield f"it took {result.duration_s:.1f} s, more than {most:g} s"


def _arrived(kind: str, usual: int, each: int) -> Judge:
    def judge(observed: Observed) -> Iterator[str]:
        count = observed.scene.sized(usual)
        for name, wanted in ((f"{kind}s", count), (f"{kind}_bytes", count * each)):
            if fact(observed, name) != wanted:
                yield f"{name}: {fact(observed, name)} arrived, not {wanted}"

    return judge


def _arguments(scene: Scene) -> Job:
    arguments = ["x" * _ARGUMENT_BYTES] * scene.sized(_ARGUMENTS)
    return python("counts_arguments", *arguments, limits=scene.limits())


def _variables(scene: Scene) -> Job:
    names = [f"FLOOD_{number}" for number in range(scene.sized(_VARIABLES))]
    env = dict.fromkeys(names, "x" * _VARIABLE_BYTES)
    return python("counts_arguments", limits=scene.limits(), env=env)


def _starting(
    program: Callable[[Scene], str], cwd: Callable[[Scene], str] = lambda _: "/workspace"
) -> Callable[[Scene], Job]:
    return lambda scene: Job(argv=(program(scene),), cwd=cwd(scene), limits=scene.limits())


ENDINGS = (
    Attack(
        name="survivors",
        expected="ends with its first process; those that left its session end too",
        job=lambda scene: python("survivors", limits=scene.limits()),
        judge=both(ends(Outcome.EXITED, exit_code=0), _said(b"left\n"), _ended_soon),
    ),
    Attack(
        name="ignores_signals",
        expected="wall_timeout, seen dead soon after",
        job=lambda scene: python("deaf", limits=scene.limits(wall_s=10)),
        judge=both(ends(Outcome.WALL_TIMEOUT), _said(b"deaf\n")),
    ),
    Attack(
        name="kills_itself",
        expected="signalled by 9",
        job=lambda scene: python("suicide", limits=scene.limits()),
        judge=ends(Outcome.SIGNALLED, signal=signal.SIGKILL),
    ),
    Attack(
        name="exits_137",
        expected="exited with 137",
        job=lambda scene: python("exit_137", limits=scene.limits()),
        judge=ends(Outcome.EXITED, exit_code=137),
    ),
    Attack(
        name="program_of_the_host",
        expected="program_not_found",
        job=_starting(lambda scene: f"{scene.directory}/program"),
        judge=is_rejected("program_not_found"),
    ),
    Attack(
        name="program_by_dots",
        expected="program_not_found",
        job=_starting(lambda scene: f"/workspace/{_UP}{scene.directory}/program"),
        judge=is_rejected("program_not_found"),
    ),
    Attack(
        name="directory_of_the_host",
        expected="invalid_job: the image has no such directory",
        job=_starting(lambda _: "/bin/true", lambda scene: scene.directory),
        judge=is_rejected("invalid_job"),
    ),
    Attack(
        name="directory_by_dots",
        expected="invalid_job",
        job=_starting(lambda _: "/bin/true", lambda scene: f"/tmp/{_UP}{scene.directory}"),  # noqa: S108 - the guest's
        judge=is_rejected("invalid_job"),
    ),
    Attack(
        name="image_by_dots",
        expected="invalid_job",
        job=lambda scene: Job(
            argv=("/program",), image=f"{_UP}{scene.directory}", limits=scene.limits()
        ),
        judge=is_rejected("invalid_job"),
    ),
    Attack(
        name="argument_flood",
        expected="all arguments arrive",
        job=_arguments,
        judge=both(
            ends(Outcome.EXITED, exit_code=0), _arrived("argument", _ARGUMENTS, _ARGUMENT_BYTES)
        ),
    ),
    Attack(
        name="environment_flood",
        expected="all variables arrive",
        job=_variables,
        judge=both(
            ends(Outcome.EXITED, exit_code=0), _arrived("variable", _VARIABLES, _VARIABLE_BYTES)
        ),
    ),
    Attack(
        name="argument_overflow",
        expected="invalid_job",
        job=lambda scene: Job(argv=("true", "x" * _TOO_MANY_BYTES), limits=scene.limits()),
        judge=is_rejected("invalid_job"),
    ),
)
"""In the order in which they are told."""
