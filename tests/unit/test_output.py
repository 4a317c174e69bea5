from __future__ import annotations

import fcntl
import os

import anyio
import anyio.to_thread
import pytest

from corral_worker.process.output import Pipe, supply

MIB = 1024**2


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_pipe_closes_both_ends() -> None:
    with Pipe(parent="read") as pipe:
        assert is_open(pipe.read_end)
        assert is_open(pipe.write_end)

    assert not is_open(pipe.read_end)
    assert not is_open(pipe.write_end)


def test_a_pipe_never_closes_an_end_twice() -> None:
    with Pipe(parent="read") as pipe:
        pipe.close(pipe.theirs)
        # The number goes to the next who asks, and must stay open.
        other = os.open("/dev/null", os.O_RDONLY)
        assert other == pipe.theirs
        pipe.close(pipe.theirs)

    assert is_open(other)
    os.close(other)


@pytest.mark.parametrize("parent", ["read", "write"])
def test_only_the_parents_end_does_not_block_and_no_end_is_inherited(
    parent: str,
) -> None:
    with Pipe(parent="read" if parent == "read" else "write") as pipe:
        assert pipe.ours == (pipe.read_end if parent == "read" else pipe.write_end)
        assert not os.get_blocking(pipe.ours)
        assert os.get_blocking(pipe.theirs)
        for end in (pipe.ours, pipe.theirs):
            assert fcntl.fcntl(end, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


async def test_all_input_is_supplied_to_a_slow_reader() -> None:
    data = os.urandom(3 * MIB)
    received = bytearray()
    with Pipe(parent="write") as pipe:

        def read() -> None:
            while chunk := os.read(pipe.theirs, 30_000):
                received.extend(chunk)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, read)
            await supply(pipe.ours, data)
            pipe.close(pipe.ours)

    assert bytes(received) == data


async def test_a_reader_that_goes_away_ends_the_supply() -> None:
    with Pipe(parent="write") as pipe:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supply, pipe.ours, bytes(MIB))
            await anyio.wait_readable(pipe.theirs)
            pipe.close(pipe.theirs)


async def test_a_supply_that_nobody_reads_can_be_cancelled() -> None:
    with Pipe(parent="write") as pipe, anyio.move_on_after(0.05) as scope:
        await supply(pipe.ours, bytes(MIB))

    assert scope.cancelled_caught
