"""The end of a sandbox: one rung after the other until it is dead."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import anyio
import anyio.to_thread
import structlog

from corral import CorralError, EffectiveLimits, Termination
from corral.result import KillStep
from corral_worker.process.child import ChildProcess
from corral_worker.process.output import BoundedOutput
from corral_worker.sandbox.cgroup import wait_until_empty
from corral_worker.sandbox.outcome import OUTCOME_OF_KILL, Ending, KillCause
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.sandbox.state import StateFile
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.verbs import Delete, Kill

_RUNSC_WITHIN_S = 3.0
"""Seconds that one call of ``runsc kill`` or ``delete`` may take."""
_RUNG_WITHIN_S = 1.0
"""Seconds that one rung has to take effect."""

_REQUESTED_BY: Mapping[KillCause, Literal["caller", "worker"]] = {
    "cancelled": "caller",
    "shutdown": "worker",
    "start_timeout": "worker",
}


class Life:
    """What happens to one sandbox, noted as it happens. Monotonic seconds."""

    def __init__(self, limits: EffectiveLimits, state: StateFile) -> None:
        self._state = state
        self.began = time.monotonic()
        self.created = False
        self.running: float | None = None
        self.ended: float | None = None
        self.status = 0
        self.killed: KillCause | None = None
        self.steps: list[KillStep] = []
        self.dead_at: float | None = None
        self.stdout = BoundedOutput(limits.output_bytes)
        self.stderr = BoundedOutput(limits.output_bytes)

    def look(self) -> bool:
        """Note how far the sandbox has come, and return whether its program runs."""
        status = self._state.status()
        self.created |= status is not None
        if status == "running" and self.running is None:
            self.running = self.ended or time.monotonic()
        return self.running is not None


class Ladder:
    """Ends sandboxes.

    Args:
        runsc: the runtime that runs them.
    """

    def __init__(self, runsc: Runsc) -> None:
        self._runsc = runsc
        self._log = structlog.get_logger()

    async def end(self, place: Place, child: ChildProcess, life: Life, stop: Stop) -> None:
        """Climb the ladder until the sandbox is dead. A sandbox that has ended needs none of it."""
        if life.ended is None:
            stop.request("shutdown")
            life.killed = stop.cause
            starting = not life.look()
            await self._climb(place, child, life)
            # A runsc that was killed has written its last word.
            life.look()
            await (self._kill_orphan if starting else self._delete)(place, life)
        elif self._runsc.leftovers(place.id):
            await self._delete(place, life)
        if life.steps:
            with anyio.move_on_after(_RUNG_WITHIN_S):
                if await anyio.to_thread.run_sync(wait_until_empty, place.cgroup, _RUNG_WITHIN_S):
                    life.dead_at = time.monotonic()

    async def _climb(self, place: Place, child: ChildProcess, life: Life) -> None:
        """Try one rung after the other; a rung that fails is not waited for."""

        async def runsc_kill() -> None:
            await self._runsc.kill(Kill(id=place.id), within_s=_RUNSC_WITHIN_S)

        async def cgroup_kill() -> None:
            await anyio.to_thread.run_sync(place.cgroup.kill)

        async def process_kill() -> None:
            child.kill_group()

        # While a sandbox is being created runsc cannot kill it (google/gvisor#14533):
        # the one that creates it goes first, so that no program is started any more.
        rungs: tuple[tuple[KillStep, Callable[[], Awaitable[None]]], ...] = (
            *((("runsc_kill", runsc_kill),) if life.running else (("process_kill", process_kill),)),
            ("cgroup_kill", cgroup_kill),
            ("process_kill", process_kill),
        )
        for step, rung in rungs:
            life.steps.append(step)
            try:
                await rung()
            except (RunscError, OSError) as error:
                self._log.warning("sandbox.rung_failed", sandbox=place.id, detail=str(error))
                continue
            with anyio.move_on_after(_RUNG_WITHIN_S):
                life.status = await child.wait()
                life.ended = time.monotonic()
                return

    async def _kill_orphan(self, place: Place, life: Life) -> None:
        """Kill the sandbox whose runsc was killed while it started.

        ``runsc delete`` would wait until PID 1 has reaped it: for seconds where PID 1
        is slow, in vain where it reaps nothing. All that it cleans goes with the place.
        """
        life.steps.append("cgroup_kill")
        try:
            await anyio.to_thread.run_sync(place.cgroup.kill)
        except OSError as error:
            self._log.warning("sandbox.rung_failed", sandbox=place.id, detail=str(error))

    async def _delete(self, place: Place, life: Life) -> None:
        life.steps.append("runsc_delete")
        try:
            await self._runsc.delete(Delete(id=place.id), within_s=_RUNSC_WITHIN_S)
        except RunscError as error:
            self._log.warning("sandbox.delete_failed", sandbox=place.id, detail=error.detail)


def certificate(ending: Ending | CorralError, stop: Stop, life: Life) -> Termination | None:
    """Return the certificate of an end that corral brought about; None of any other."""
    if life.killed is None or isinstance(ending, CorralError):
        return None
    if ending.outcome is not OUTCOME_OF_KILL.get(life.killed):
        return None  # it ended by itself before it could be killed
    dead_at = life.dead_at
    return Termination(
        cause=ending.outcome,
        requested_by=_REQUESTED_BY.get(life.killed, "limit"),
        steps=tuple(life.steps),
        verified_dead=dead_at is not None,
        latency_s=(dead_at or time.monotonic()) - stop.requested_at,
    )
