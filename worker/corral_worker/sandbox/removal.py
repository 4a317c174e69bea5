"""The removal of sandboxes that are dead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager

import anyio
import structlog

from corral_worker.process.thread import in_thread
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.sandbox.verbs import Delete

_GATHER_S = 0.1
"""Seconds in which those that die are gathered, for a turn of a thread costs more than the work."""
_DELETE_WITHIN_S = 3.0
_REMOVE_WITHIN_S = 3.0
_WITHIN_S = 20.0


class Remains:
    """What a sandbox leaves on the host, and how it is to be removed.

    Args:
        place: where it was.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.awaited = True
        """Whether the removal is waited for: so it is while anything in it may be alive."""
        self.to_delete = False
        """Whether runsc is to be told to delete it."""
        self.left: tuple[str, ...] = ()
        """What could not be removed, once that was tried."""


class Removal:
    """Removes what is left of dead sandboxes while nobody waits for it, many at one time.

    Made by :meth:`open`.

    Args:
        runsc: the runtime.
    """

    def __init__(self, runsc: Runsc) -> None:
        self._runsc = runsc
        self._dead: list[tuple[Remains, AbstractContextManager[object]]] = []
        self._added = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, runsc: Runsc) -> AsyncIterator[Removal]:
        """Give one that is at work for the block; when that has ended nothing is left.

        What the block raises is raised as it is, not as part of a group.
        """
        removal = cls(runsc)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(removal._work)
            try:
                yield removal
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
            finally:
                tasks.cancel_scope.cancel()
                await removal._remove()
        if failure:
            raise failure

    def add(self, remains: Remains, held: AbstractContextManager[object]) -> None:
        """Have a sandbox removed soon, and then leave a context that was entered for it."""
        self._dead.append((remains, held))
        self._added.set()

    async def _work(self) -> None:
        while True:
            await self._added.wait()
            await anyio.sleep(_GATHER_S)
            self._added = anyio.Event()
            await self._remove()

    async def _remove(self) -> None:
        dead, self._dead = self._dead, []
        if not dead:
            return
        with ExitStack() as owned:
            for _, held in dead:
                owned.push(held)
            await remove(self._runsc, [remains for remains, _ in dead])


async def remove(runsc: Runsc, dead: Sequence[Remains]) -> None:
    """Remove sandboxes and see what is left of each, in bounded time and also if cancelled.

    Whatever fails here is logged: it is no job's trouble.
    """
    log = structlog.get_logger()
    with anyio.move_on_after(_WITHIN_S, shield=True) as bounded:
        to_delete = tuple(remains.place.id for remains in dead if remains.to_delete)
        if to_delete:
            try:
                await runsc.delete(Delete(ids=to_delete), within_s=_DELETE_WITHIN_S)
            except RunscError as error:
                log.warning("sandbox.not_deleted", sandboxes=to_delete, detail=str(error))
            except Exception:  # all that runsc forgets is removed without it, too
                log.exception("sandbox.not_deleted", sandboxes=to_delete)
        await in_thread(_remove_each, runsc, dead)
    for remains in dead:
        if bounded.cancelled_caught:
            # What has begun in a thread is not cut short: nothing was removed.
            remains.left = (f"{remains.place.id}: no thread was free to remove it",)
        if remains.left:
            log.error("sandbox.leftovers", sandbox=remains.place.id, leftovers=remains.left)


def _remove_each(runsc: Runsc, dead: Sequence[Remains]) -> None:
    for remains in dead:
        place = remains.place
        try:
            left = place.remove(within_s=_REMOVE_WITHIN_S)
            remains.left = (*left, *runsc.forget(place.id))
        except Exception as error:  # noqa: BLE001 - one's is not to keep the others on the host
            structlog.get_logger().exception("sandbox.not_removed", sandbox=place.id)
            remains.left = (f"{place.id}: {type(error).__name__}",)
