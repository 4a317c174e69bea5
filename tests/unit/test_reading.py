"""Reading what programs write, as it comes."""

from __future__ import annotations

import errno
import os
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from corral_worker.process.capture import BoundedOutput
from corral_worker.process.output import Pipe
from corral_worker.process.reading import Reading

MIB = 1024**2
SOON_S = 20.0


class Slow:
    """Keeps what it is fed, and is settled when a test says so."""

    def __init__(self) -> None:
        self.fed: list[bytes] = []
        self.asked = anyio.Event()
        self.may_settle = anyio.Event()
        self.is_settled = True

    def feed(self, chunk: bytes) -> None:
        self.fed.append(chunk)
        self.is_settled = False

    async def settle(self) -> None:
        self.asked.set()
        await self.may_settle.wait()
        self.is_settled = True


async def test_everything_up_to_the_end_is_read() -> None:
    data = os.urandom(3 * MIB)
    output = BoundedOutput(4 * MIB)

    def write(descriptor: int) -> None:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, output.feed)
                await anyio.to_thread.run_sync(write, os.dup(pipe.theirs))
                pipe.close(pipe.theirs)
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    assert output.captured().data == data


async def test_the_end_is_that_of_all() -> None:
    fed: list[bytes] = []
    with Pipe(parent="read") as one, Pipe(parent="read") as other:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(one.ours, fed.append)
                reading.read(other.ours, fed.append)
                one.close(one.theirs)
                with anyio.move_on_after(0.05) as scope:
                    await reading.ended()
                assert scope.cancelled_caught
                os.write(other.theirs, b"still here")
                other.close(other.theirs)
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    assert fed == [b"still here"]


async def test_with_nothing_to_read_there_is_no_end_to_wait_for() -> None:
    async with anyio.create_task_group() as tasks:
        with Reading(tasks) as reading, anyio.fail_after(SOON_S):
            await reading.ended()


async def test_a_reading_that_is_cancelled_has_fed_what_it_read_and_reads_no_more() -> None:
    fed: list[bytes] = []
    with Pipe(parent="read") as pipe:
        with anyio.move_on_after(0.05) as scope:
            async with anyio.create_task_group() as tasks:
                with Reading(tasks) as reading:
                    reading.read(pipe.ours, fed.append)
                    os.write(pipe.theirs, b"so far")
                    await reading.ended()
        os.write(pipe.theirs, b"too late")
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert fed == [b"so far"]


async def test_a_stream_without_end_lets_others_run() -> None:
    stop = threading.Event()

    def flood(descriptor: int) -> None:
        while not stop.is_set():
            os.write(descriptor, bytes(4096))

    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, BoundedOutput(10).feed)
                async with anyio.create_task_group() as others:
                    others.start_soon(anyio.to_thread.run_sync, flood, pipe.theirs)
                    for _ in range(100):
                        await anyio.lowlevel.checkpoint()
                    stop.set()


async def test_nothing_is_read_before_what_was_fed_has_settled() -> None:
    slow = Slow()
    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, slow.feed, settling=slow)
                os.write(pipe.theirs, b"first")
                with anyio.fail_after(SOON_S):
                    await slow.asked.wait()
                os.write(pipe.theirs, b"second")
                pipe.close(pipe.theirs)
                reading.hurry()
                await anyio.lowlevel.checkpoint()
                assert slow.fed == [b"first"]
                slow.may_settle.set()
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    assert slow.fed == [b"first", b"second"]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_what_came_while_something_settled_is_fed_though_nobody_reads_any_more(
    *, is_cancelled: bool
) -> None:
    slow = Slow()
    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, slow.feed, settling=slow)
                os.write(pipe.theirs, b"first")
                with anyio.fail_after(SOON_S):
                    await slow.asked.wait()
                os.write(pipe.theirs, b"last")
                pipe.close(pipe.theirs)
            # What is being written must not be added to.
            assert slow.fed == [b"first"]
            if is_cancelled:
                tasks.cancel_scope.cancel()
            slow.may_settle.set()

    assert slow.fed == [b"first", b"last"]


async def test_what_is_there_when_the_block_ends_is_fed() -> None:
    fed: list[bytes] = []
    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, fed.append)
                os.write(pipe.theirs, b"in time")

    assert fed == [b"in time"]


async def test_whoever_writes_on_and_on_does_not_keep_the_block_from_its_end() -> None:
    slow = Slow()
    with Pipe(parent="read") as pipe:

        def feed(chunk: bytes) -> None:
            slow.feed(chunk)
            os.write(pipe.theirs, b"more")

        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, feed, settling=slow)
                os.write(pipe.theirs, b"first")
                with anyio.fail_after(SOON_S):
                    await slow.asked.wait()
            slow.may_settle.set()

    assert slow.fed == [b"first", b"more"]


async def test_whoever_hurries_gets_what_is_there_without_a_turn_of_the_event_loop() -> None:
    fed: list[bytes] = []
    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, fed.append, pause_s=3600)
                os.write(pipe.theirs, b"last words")
                reading.hurry()
                assert fed == [b"last words"]
                # From now on it is not paused any more.
                os.write(pipe.theirs, b"after them")
                pipe.close(pipe.theirs)
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    assert fed == [b"last words", b"after them"]


async def test_what_is_written_between_two_looks_is_read_in_one() -> None:
    fed: list[bytes] = []
    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(pipe.ours, fed.append, pause_s=0.05)
                os.write(pipe.theirs, b"a")
                await anyio.lowlevel.checkpoint()
                os.write(pipe.theirs, b"b")
                pipe.close(pipe.theirs)
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    assert fed == [b"ab"]


async def test_a_pipe_that_was_full_is_looked_at_without_a_pause() -> None:
    fed: list[bytes] = []
    first = anyio.Event()

    def feed(chunk: bytes) -> None:
        fed.append(chunk)
        first.set()

    with Pipe(parent="read") as pipe:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                os.write(pipe.theirs, bytes(64 * 1024))
                reading.read(pipe.ours, feed, pause_s=0.5)
                with anyio.fail_after(SOON_S):
                    await first.wait()
                os.write(pipe.theirs, b"the rest")
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                assert fed == [bytes(64 * 1024), b"the rest"]


async def test_whatever_fails_on_the_way_fails_where_it_is_waited_for() -> None:
    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def read(descriptor: int) -> None:
        async with anyio.create_task_group() as tasks:
            with Reading(tasks) as reading:
                reading.read(descriptor, full)
                with anyio.fail_after(SOON_S):
                    await reading.ended()

    with Pipe(parent="read") as pipe:
        os.write(pipe.theirs, b"data")
        with pytest.raises(ExceptionGroup) as raised:
            await read(pipe.ours)

    assert [type(error) for error in raised.value.exceptions] == [OSError]
