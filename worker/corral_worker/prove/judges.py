"""What must be true after an attack: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from corral import CorralError, Fault, Outcome, Result
from corral_worker.prove.attack import Judge, Observed
from corral_worker.sandbox.bundle import host_tasks
from corral_worker.sandbox.outcome import OUTCOME_OF_KILL

MOST_KILL_LATENCY_S = 10.0
"""All rungs of the ladder, on a machine that attacks keep busy; idle, it is a tenth of a second."""
_KERNEL_SLACK_BYTES = 1024**2
"""The kernel's own allocations may not fail: they may pass the limit by some pages."""
_BY_US = frozenset(OUTCOME_OF_KILL.values()) - {Outcome.CANCELLED}
"""Outcomes that corral brings about; what is cancelled may never have been started."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a program tells at its end: see ``programs/attempts.py``."""

    refused: dict[str, str]
    succeeded: dict[str, str]
    facts: dict[str, msgspec.Raw]


def told(observed: Observed) -> Told | None:
    """Return what the program told; None if it told nothing that makes sense."""
    if not isinstance(observed.ending, Result):
        return None
    try:
        return msgspec.json.decode(observed.ending.stdout.splitlines()[-1], type=Told)
    except (IndexError, msgspec.MsgspecError):
        return None


def fact(observed: Observed, name: str) -> int:
    """Return a number that the program told; -1 if it told none of that name."""
    said = told(observed)
    try:
        return msgspec.json.decode(said.facts[name], type=int) if said else -1
    except (KeyError, msgspec.MsgspecError):
        return -1


def always(observed: Observed) -> Iterator[str]:
    """Yield what is wrong with the host, whatever the attack was."""
    yield from (f"left on the host: {what}" for what in observed.left)
    yield from observed.harm
    ending = observed.ending
    if ending is None:
        yield "it did not end in time"
    elif isinstance(ending, Fault):
        yield f"a fault of ours: {ending.code}: {ending} {ending.detail}".rstrip()
    elif isinstance(ending, Result):
        yield from _limits(ending)
        yield from _kill(ending, observed.scene.seconds(MOST_KILL_LATENCY_S))
        if observed.scene.secret.encode() in ending.stdout + ending.stderr:
            yield "a secret of the host is in its output"


def ends(*outcomes: Outcome, exit_code: int | None = None, signal: int | None = None) -> Judge:
    """Judge by how the program ended."""

    def judge(observed: Observed) -> Iterator[str]:
        ending = observed.ending
        if not isinstance(ending, Result):
            yield f"not {_or(outcomes)} but {_name(ending)}"
        elif ending.outcome not in outcomes:
            yield f"not {_or(outcomes)} but {ending.outcome}{_last_words(ending)}"
        elif exit_code is not None and ending.exit_code != exit_code:
            yield f"exit code {ending.exit_code}, not {exit_code}{_last_words(ending)}"
        elif signal is not None and ending.signal != signal:
            yield f"signal {ending.signal}, not {signal}"

    return judge


def is_rejected(code: str) -> Judge:
    """Judge by the code of the rejection that the job must meet."""

    def judge(observed: Observed) -> Iterator[str]:
        if not (isinstance(observed.ending, CorralError) and observed.ending.code == code):
            yield f"not {code} but {_name(observed.ending)}"

    return judge


def refused(tries: int) -> Judge:
    """Judge by what the program tried: so many things, none of which may have worked."""

    def judge(observed: Observed) -> Iterator[str]:
        yield from ends(Outcome.EXITED, exit_code=0)(observed)
        said = told(observed)
        if said is None:
            yield "it did not tell what came of its attempts"
            return
        yield from (f"it could {name}: {got}" for name, got in said.succeeded.items())
        if len(said.refused) + len(said.succeeded) != tries:
            yield f"it tried {len(said.refused) + len(said.succeeded)} things, not {tries}"

    return judge


def both(*judges: Judge) -> Judge:
    """Judge by each of these."""

    def judge(observed: Observed) -> Iterator[str]:
        for each in judges:
            yield from each(observed)

    return judge


def neighbour(observed: Observed, expected: bytes) -> Iterator[str]:
    """Yield what is wrong with the innocent job that ran beside."""
    ending = observed.neighbour
    if not isinstance(ending, Result):
        yield f"an innocent job beside it ended as {_name(ending)}"
    elif not ending.ok or ending.stdout != expected:
        yield f"an innocent job beside it ended as {ending.outcome} with {ending.stdout[:100]!r}"


def _limits(result: Result) -> Iterator[str]:
    asked, held, used = result.limits, result.host_limits, result.usage
    if asked is None or held is None or used is None:
        if result.outcome is not Outcome.CANCELLED:
            yield "the result does not tell limits and usage"
        return
    memory, tasks = asked.memory_bytes, host_tasks(asked)
    if (
        held.memory_bytes > memory
        or held.tasks > tasks
        or held.cpus > asked.cpus
        or held.swap_bytes
    ):
        yield f"the host held {held}, asked for were {asked}"
    if used.peak_memory_bytes > memory + _KERNEL_SLACK_BYTES:
        yield f"it used {used.peak_memory_bytes} bytes of memory of {memory}"
    if used.peak_tasks is not None and used.peak_tasks > tasks:
        yield f"it used {used.peak_tasks} tasks of {tasks}"
    for name in ("stdout", "stderr"):
        kept = len(getattr(result, name))
        if kept > asked.output_bytes:
            yield f"{kept} bytes of {name} were kept, of {asked.output_bytes}"


def _kill(result: Result, most_s: float) -> Iterator[str]:
    termination = result.termination
    if termination is None:
        if result.outcome in _BY_US:
            yield "nothing certifies its death"
        return
    if termination.cause is not result.outcome:
        yield f"it was certified to have died of {termination.cause}, not {result.outcome}"
    if not termination.verified_dead:
        yield "it was not seen dead"
    elif termination.latency_s > most_s:
        yield f"its death took {termination.latency_s:.2f} s, more than {most_s:g} s"


def _or(outcomes: tuple[Outcome, ...]) -> str:
    return " or ".join(outcomes)


def _name(ending: Result | CorralError | None) -> str:
    match ending:
        case None:
            return "nothing"
        case Result():
            return str(ending.outcome)
        case CorralError():
            return f"{ending.code} ({ending})"


def _last_words(result: Result) -> str:
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""
