"""Runs attacks the way jobs run, and judges them."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from corral import CorralError, EffectiveLimits, Job, Outcome, Policy, Result
from corral_worker.executor.executor import Attempt, Executor, Images, Runtime
from corral_worker.prove import judges
from corral_worker.prove.attack import Attack, Observed, Scene
from corral_worker.prove.guest import python
from corral_worker.prove.lures import Lures
from corral_worker.prove.traces import traces
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

_DEADLINE_S = 120.0
"""Seconds one attack may take on a usual machine, all sandboxes included."""
_REMOVED_WITHIN_S = 3.0
"""Seconds until all of a sandbox must be gone: the removal of a warm one is not waited for."""
_LOOK_S = 0.02
_BREATH_S = 0.05
"""Seconds between two stalls, in which this process reads."""
_NEIGHBOUR_SAYS = b"333283335000\n"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one attack."""

    name: str
    passed: bool
    expected: str
    outcome: str
    """The job's outcome, the code of the error it met, or ``none``."""
    complaints: tuple[str, ...]
    """What is not as it should be; empty if it passed."""
    duration_s: float
    """Seconds it all took: sandbox, program and clean-up."""
    run_s: float | None
    """Seconds the program ran."""
    peak_memory_bytes: int | None
    memory_limit_bytes: int | None
    peak_tasks: int | None
    tasks_limit: int | None
    kill_latency_s: float | None
    """Seconds from the decision to end it until it was seen dead, if corral ended it."""
    worker_growth_bytes: int | None
    """How much this process grew at most, where that was measured."""


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """Where attacks run, and where their traces would be."""

    images: Images
    sandboxes: Sandboxes
    runtime: Runtime
    state_dir: Path
    cgroup_parent: str


class Prover:
    """Attacks one host.

    Args:
        ground: the host.
        lures: what is out to be found there.
        at_once: how many attacks run at one time.
    """

    def __init__(self, ground: Ground, lures: Lures, *, at_once: int) -> None:
        self._ground = ground
        self._lures = lures
        self._at_once = at_once

    async def prove(self, attacks: Sequence[Attack]) -> tuple[Proof, ...]:
        """Run all attacks and return what came of them, in their order.

        Those that are to be alone come last. On cancellation all sandboxes
        are dead and gone before this raises.
        """
        proofs: dict[str, Proof] = {}
        slots = anyio.CapacityLimiter(self._at_once)

        async def one(attack: Attack) -> None:
            async with slots:
                proofs[attack.name] = await self._prove(attack)

        async with anyio.create_task_group() as tasks:
            for attack in attacks:
                if not attack.alone:
                    tasks.start_soon(one, attack)
        for attack in attacks:
            if attack.alone:
                await one(attack)
        return tuple(proofs[attack.name] for attack in attacks)

    async def _prove(self, attack: Attack) -> Proof:
        began = time.monotonic()
        observed = await self._observe(attack)
        return proof(attack, observed, duration_s=time.monotonic() - began)

    async def _observe(self, attack: Attack) -> Observed:
        scene = self._lures.scene
        witness = _Witness(self._ground.sandboxes)
        ending: Result | CorralError | None = None
        beside: Result | CorralError | None = None

        async def neighbour() -> None:
            nonlocal beside
            beside = await self._execute(_neighbour, Policy(), scene, witness)

        memory = _Memory() if attack.alone else None
        with anyio.move_on_after(scene.seconds(_DEADLINE_S)):
            async with _stalling(attack.stall_s), anyio.create_task_group() as tasks:
                if attack.neighbour:
                    tasks.start_soon(neighbour)
                ending = await self._execute(attack.job, attack.policy, scene, witness)
        return Observed(
            scene=scene,
            ending=ending,
            left=await anyio.to_thread.run_sync(
                self._left, witness.seen, scene.seconds(_REMOVED_WITHIN_S)
            ),
            harm=self._lures.harm(),
            neighbour=beside,
            worker_growth_bytes=memory.growth() if memory else None,
        )

    async def _execute(
        self, make: Callable[[Scene], Job], policy: Policy, scene: Scene, witness: _Witness
    ) -> Result | CorralError:
        executor = Executor(
            policy_of=lambda _: policy,
            images=self._ground.images,
            sandboxes=witness,
            runtime=self._ground.runtime,
        )
        try:
            attempt = Attempt(
                job=make(scene),
                job_id="prove:1",
                tenant="prove",
                number=1,
                enqueued_at=dt.datetime.now(dt.UTC),
            )
            return await executor.execute(attempt, Stop())
        except CorralError as error:
            return error

    def _left(self, sandboxes: Sequence[str], within_s: float) -> tuple[str, ...]:
        """Return the traces that are still there at the end of the time there is for removal."""
        deadline = time.monotonic() + within_s
        while (left := self._traces(sandboxes)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return left

    def _traces(self, sandboxes: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            trace
            for sandbox in sandboxes
            for trace in traces(
                sandbox,
                state_dir=self._ground.state_dir,
                cgroup_parent=self._ground.cgroup_parent,
            )
        )


def proof(attack: Attack, observed: Observed, *, duration_s: float) -> Proof:
    """Judge an attack by what was seen."""
    complaints = tuple(_complaints(attack, observed))
    ending = observed.ending
    result = ending if isinstance(ending, Result) else Result(outcome=Outcome.CANCELLED)
    usage, held, termination = result.usage, result.host_limits, result.termination
    return Proof(
        name=attack.name,
        passed=not complaints,
        expected=attack.expected,
        outcome=_outcome(ending),
        complaints=complaints,
        duration_s=duration_s,
        run_s=result.duration_s if usage else None,
        peak_memory_bytes=usage.peak_memory_bytes if usage else None,
        memory_limit_bytes=held.memory_bytes if held else None,
        peak_tasks=usage.peak_tasks if usage else None,
        tasks_limit=held.tasks if held else None,
        kill_latency_s=termination.latency_s if termination else None,
        worker_growth_bytes=observed.worker_growth_bytes,
    )


def _outcome(ending: Result | CorralError | None) -> str:
    match ending:
        case None:
            return "none"
        case Result():
            return ending.outcome
        case CorralError():
            return ending.code


def _complaints(attack: Attack, observed: Observed) -> Iterator[str]:
    yield from judges.always(observed)
    yield from attack.judge(observed)
    if attack.neighbour:
        yield from judges.neighbour(observed, _NEIGHBOUR_SAYS)


def _neighbour(scene: Scene) -> Job:
    return python("neighbour", limits=scene.limits())


class _Witness:
    """Runs sandboxes and notes which there were."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self.seen: list[str] = []

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        report = await self._sandboxes.run(job, limits, rootfs, stop)
        self.seen.append(report.sandbox)
        return report


@asynccontextmanager
async def _stalling(each_s: float) -> AsyncIterator[None]:
    """Block the event loop again and again, as long as the block lasts."""

    async def stall() -> None:
        while each_s:
            time.sleep(each_s)  # noqa: ASYNC251 - that nothing is read meanwhile is the attack
            await anyio.sleep(_BREATH_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stall)
        yield
        tasks.cancel_scope.cancel()


class _Memory:
    """How much this process grows from now on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: see proc(5)
        self._before = _status("VmRSS")

    def growth(self) -> int:
        return _status("VmHWM") - self._before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)
