"""The end of a sandbox: one rung after the other until it is dead."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import anyio
import structlog

from corral import CorralError, EffectiveLimits, Termination
from corral.result import KillStep
from corral_worker.process.capture import BoundedOutput, Spool
from corral_worker.process.child import ChildProcess
from corral_worker.process.thread import in_thread, needed_always
from corral_worker.sandbox.cgroup import SandboxCgroup
from corral_worker.sandbox.cgroup_processes import wait_until_empty
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.outcome import OUTCOME_OF_KILL, Ending, KillCause
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError, RunscTimeoutError
from corral_worker.sandbox.state import StateFile
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.verbs import Delete, Kill

_KILL_WITHIN_S = 1.0
"""Seconds that ``runsc kill`` may take; it is not waited for until the sandbox is dead."""
_DELETE_WITHIN_S = 3.0
_EMPTY_WITHIN_S = 1.0
"""Seconds until the cgroup is to be empty."""
_KILL_AGAIN_S = 0.01
_LAST_WORDS_WITHIN_S = 0.5
"""Seconds that ``runsc run`` has to note the end of its sandbox; it needs up to 0.1."""
_REAP_WITHIN_S = 1.0

_REQUESTED_BY: Mapping[KillCause, Literal["caller", "worker"]] = MappingProxyType(
    {
        "cancelled": "caller",
        "shutdown": "worker",
        "start_timeout": "worker",
    }
)


class Life:
    """What happens to one sandbox, noted as it happens. Monotonic seconds."""

    def __init__(
        self, limits: EffectiveLimits, state: StateFile, spool: Spool | None = None
    ) -> None:
        self._state = state
        self.began = time.monotonic()
        self.created = False
        self.running: float | None = None
        self.ended: float | None = None
        self.status = 0
        self.killed: KillCause | None = None
        self.steps: list[KillStep] = []
        self.dead_at: float | None = None
        self.stdout = BoundedOutput(limits.output_bytes, spool)
        self.stderr = BoundedOutput(limits.output_bytes, spool)
        self.notes = Notes()

    def note(self, chunk: bytes) -> None:
        """Take the next bytes of the log."""
        self.notes.feed(chunk)
        self.created |= self.notes.is_starting

    def look(self) -> float | None:
        """Note how far the sandbox has come, and return since when its program runs."""
        status = self._state.status()
        self.created |= status is not None
        if self.running is None and (status == "running" or self.notes.begun):
            self.running = self.ended or max(self.began, time.monotonic() - self.notes.age_s())
        return self.running

    @property
    def spools(self) -> bool:
        """Whether output is on disk: to capture it, its last bytes are written there."""
        return self.stdout.on_disk or self.stderr.on_disk

    @property
    def is_to_be_deleted(self) -> bool:
        """Whether runsc was told to kill it, and has yet to be told to delete it.

        Nobody need wait for that: the sandbox is dead.
        """
        return "runsc_kill" in self.steps and "runsc_delete" not in self.steps


class Ladder:
    """Ends sandboxes.

    A running one is killed in two independent ways at the same time: by runsc, as
    one asks a container to end, and by its cgroup, which needs no runsc that works.
    It is dead when the cgroup is empty. All else, such as the last words of
    ``runsc run``, which looks only every 100 ms, is cleaning up behind it.

    Args:
        runsc: the runtime that runs them.
    """

    def __init__(self, runsc: Runsc) -> None:
        self._runsc = runsc
        self._log = structlog.get_logger()

    async def end(self, place: Place, child: ChildProcess, life: Life, stop: Stop) -> None:
        """Climb the ladder until the sandbox is dead. A sandbox that has ended needs none of it.

        Takes a few seconds at most, even if no rung has any effect.
        """
        if life.ended is not None:
            await self._delete_leftovers(place, life)
            return
        stop.request("shutdown")
        life.killed = stop.cause
        if life.look() is not None:
            await self._end_running(place, child, life)
        else:
            await self._end_starting(place, child, life)
        if life.dead_at is None:
            await self._kill_cgroup(place, life)
        if life.dead_at is None:
            self._log.error("sandbox.not_seen_dead", sandbox=place.id, steps=life.steps)

    async def _end_running(self, place: Place, child: ChildProcess, life: Life) -> None:
        refusals: list[RunscError] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill, place, refusals)
            life.steps += ["runsc_kill", "cgroup_kill"]
            await self._kill_cgroup(place, life)
            await _wait(child, life, within_s=_LAST_WORDS_WITHIN_S)
            if life.ended is None:
                await _kill_process(child, life)
        for error in refusals:
            # Usually it is that the sandbox is dead already.
            if life.dead_at is None or isinstance(error, RunscTimeoutError):
                self._rung_failed(place, error)
        await self._delete_leftovers(place, life)

    async def _end_starting(self, place: Place, child: ChildProcess, life: Life) -> None:
        """End a sandbox that is being created: runsc cannot kill it (google/gvisor#14533).

        The process that creates it goes first, so that no program is started any more.
        There is no ``runsc delete``: it takes longer than all else together, waits for
        the orphan to be reaped, and cleans nothing that does not go with the place.
        """
        await _kill_process(child, life)
        # A runsc that was killed has written its last word.
        life.look()
        life.steps.append("cgroup_kill")
        await self._kill_cgroup(place, life)

    async def _kill(self, place: Place, refusals: list[RunscError]) -> None:
        try:
            await self._runsc.kill(Kill(id=place.id), within_s=_KILL_WITHIN_S)
        except RunscError as error:
            refusals.append(error)

    async def _kill_cgroup(self, place: Place, life: Life) -> None:
        try:
            empty = await in_thread(kill_until_empty, place.cgroup, limiter=needed_always())
        except OSError as error:
            self._rung_failed(place, error)
            return
        if empty:
            life.dead_at = time.monotonic()

    async def _delete_leftovers(self, place: Place, life: Life) -> None:
        # A `runsc run` that saw its sandbox die has cleaned up behind it.
        if self._runsc.leftovers(place.id):
            life.steps.append("runsc_delete")
            await self._delete(place)

    async def _delete(self, place: Place) -> None:
        try:
            await self._runsc.delete(Delete(ids=(place.id,)), within_s=_DELETE_WITHIN_S)
        except RunscError as error:
            self._rung_failed(place, error)

    def _rung_failed(self, place: Place, error: RunscError | OSError) -> None:
        self._log.warning("sandbox.rung_failed", sandbox=place.id, detail=str(error))


async def _kill_process(child: ChildProcess, life: Life) -> None:
    life.steps.append("process_kill")
    child.kill_group()
    await _wait(child, life, within_s=_REAP_WITHIN_S)


async def _wait(child: ChildProcess, life: Life, *, within_s: float) -> None:
    with anyio.move_on_after(within_s):
        life.status = await child.wait()
        # The program cannot outlive its sandbox.
        life.ended = life.dead_at or time.monotonic()


def kill_until_empty(cgroup: SandboxCgroup) -> bool:
    """Kill again and again: what is being forked can escape one signal.

    Return whether the cgroup is empty, whoever emptied it.

    Raises:
        OSError: it is not, and this process may not kill what is in it.
    """
    deadline = time.monotonic() + _EMPTY_WITHIN_S
    refused: OSError | None = None
    while time.monotonic() < deadline:
        try:
            cgroup.kill()
        except OSError as error:
            refused = error
        if wait_until_empty(cgroup, _KILL_AGAIN_S):
            return True
    if refused:
        raise refused
    return False


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
