from __future__ import annotations

import anyio
import pytest

from corral_worker.queue.room import Room

SOON_S = 20.0


class Results:
    """Results that are held in memory until they are told to be gone."""

    def __init__(self, room: Room, tasks: anyio.abc.TaskGroup) -> None:
        self._room = room
        self._tasks = tasks
        self._gone: dict[str, anyio.Event] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self.held: list[str] = []

    async def ask(self, name: str, size: int) -> None:
        """Ask for room, and return when it is held or stands in line."""
        self._gone[name] = anyio.Event()
        self._tasks.start_soon(self._hold, name, size)
        await anyio.wait_all_tasks_blocked()

    async def go(self, name: str) -> None:
        self._gone[name].set()
        await anyio.wait_all_tasks_blocked()

    def cancel(self, name: str) -> None:
        self._scopes[name].cancel()

    async def _hold(self, name: str, size: int) -> None:
        with anyio.CancelScope() as scope, self._room.share() as take:
            self._scopes[name] = scope
            await take(size)
            self.held.append(name)
            try:
                await self._gone[name].wait()
            finally:
                self.held.remove(name)


async def test_no_more_is_held_at_one_time_than_there_is_room_for() -> None:
    async with anyio.create_task_group() as tasks:
        results = Results(Room(10), tasks)
        for name in "abcd":
            await results.ask(name, 4)

        assert results.held == ["a", "b"]
        await results.go("a")
        assert results.held == ["b", "c"]
        tasks.cancel_scope.cancel()


async def test_who_fits_waits_for_who_came_before_and_does_not() -> None:
    async with anyio.create_task_group() as tasks:
        results = Results(Room(10), tasks)
        for name, size in (("a", 6), ("b", 8), ("c", 2)):
            await results.ask(name, size)

        assert results.held == ["a"]
        await results.go("a")
        assert results.held == ["b", "c"]
        tasks.cancel_scope.cancel()


async def test_what_is_larger_than_all_the_room_gets_it_alone() -> None:
    async with anyio.create_task_group() as tasks:
        results = Results(Room(10), tasks)
        for name, size in (("a", 1), ("b", 1000), ("c", 1)):
            await results.ask(name, size)

        assert results.held == ["a"]
        await results.go("a")
        assert results.held == ["b"]
        await results.go("b")
        assert results.held == ["c"]
        tasks.cancel_scope.cancel()


async def test_who_is_cancelled_in_line_holds_up_nobody_and_keeps_nothing() -> None:
    async with anyio.create_task_group() as tasks:
        results = Results(Room(10), tasks)
        for name, size in (("a", 6), ("b", 8), ("c", 4)):
            await results.ask(name, size)

        results.cancel("b")
        await anyio.wait_all_tasks_blocked()

        assert results.held == ["a", "c"]
        await results.go("a")
        await results.ask("d", 6)
        assert results.held == ["c", "d"]
        tasks.cancel_scope.cancel()


async def test_who_is_cancelled_as_its_turn_comes_gives_the_room_on() -> None:
    async with anyio.create_task_group() as tasks:
        results = Results(Room(10), tasks)
        for name in "abc":
            await results.ask(name, 10)

        results.cancel("b")
        await results.go("a")

        assert results.held == ["c"]
        tasks.cancel_scope.cancel()


async def test_room_is_given_back_however_the_block_ends() -> None:
    room = Room(10)

    async def fail() -> None:
        with room.share() as take:
            await take(10)
            raise LookupError

    with anyio.fail_after(SOON_S):
        for _ in range(2):
            with pytest.raises(LookupError):
                await fail()


async def test_who_needs_no_room_waits_for_nobody() -> None:
    async with anyio.create_task_group() as tasks:
        room = Room(10)
        results = Results(room, tasks)
        for name in "ab":
            await results.ask(name, 10)

        with room.share():
            pass

        assert results.held == ["a"]
        tasks.cancel_scope.cancel()
