from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import anyio
import pytest

from corral_worker.process import reaping as reaping_module
from corral_worker.process.call import PATH, call
from corral_worker.process.child import ChildProcess, child_process, owned_pids
from corral_worker.process.reaping import reaping

SOON_S = 20.0
# A child that leaves a grandchild in a session of its own, which ends when it can read a line.
LEAVES_ORPHAN = """
    setsid sh -c 'echo $$ >pid.new; mv pid.new pid; read line <fifo; exit 7' >/dev/null 2>&1 &
    while [ ! -e pid ]; do sleep 0.01; done
"""


def children() -> set[int]:
    """Return the pids of this process's children, ended ones that nobody reaped among them."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


@pytest.fixture(autouse=True)
async def _all_as_before() -> AsyncIterator[None]:
    before = children()
    yield
    assert children() == before
    assert owned_pids() == set()


def started(script: str, cwd: Path = Path("/")) -> AbstractAsyncContextManager[ChildProcess]:
    return child_process(
        ["/bin/sh", "-c", script],
        env={"PATH": PATH},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def orphan(directory: Path) -> int:
    """Return the pid of a process whose parent has ended, and that waits at a FIFO."""
    await anyio.Path(directory).mkdir(exist_ok=True)
    os.mkfifo(directory / "fifo")
    done = await call(["sh", "-c", LEAVES_ORPHAN], within_s=SOON_S, cwd=directory)
    assert done.status == 0
    return int((directory / "pid").read_text())


async def released(directory: Path) -> None:
    with anyio.fail_after(SOON_S):
        await anyio.to_thread.run_sync((directory / "fifo").write_text, "\n")


async def gone(pid: int) -> None:
    with anyio.fail_after(SOON_S):
        while await anyio.Path(f"/proc/{pid}").exists():
            await anyio.sleep(0.002)


def ended(pid: int) -> None:
    """Return when a child has ended; leaves it unreaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_an_orphan_is_adopted_and_reaped(tmp_path: Path) -> None:
    async with reaping():
        pid = await orphan(tmp_path)
        assert parent_of(pid) == os.getpid()

        await released(tmp_path)
        await gone(pid)


async def test_many_orphans_that_end_together_are_all_reaped(tmp_path: Path) -> None:
    async with reaping():
        pids = [await orphan(tmp_path / str(number)) for number in range(10)]

        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            await gone(pid)


async def test_without_a_descriptor_left_orphans_wait_and_the_worker_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look() -> Path:
        nonlocal looks
        looks += 1
        return children_file()

    children_file = reaping_module._children_file
    monkeypatch.setattr(reaping_module, "_LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(reaping_module, "_children_file", look)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with reaping():
        pid = await orphan(tmp_path)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            seen = looks
            with anyio.fail_after(SOON_S):
                while looks < seen + 3:
                    await anyio.sleep(0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await gone(pid)


async def test_an_orphan_that_ended_last_is_reaped_when_the_block_ends(tmp_path: Path) -> None:
    async with reaping():
        pid = await orphan(tmp_path)
        os.kill(pid, signal.SIGKILL)
        ended(pid)

    assert pid not in children()


async def test_afterwards_orphans_are_anothers(tmp_path: Path) -> None:
    async with reaping():
        pass

    pid = await orphan(tmp_path)
    assert parent_of(pid) != os.getpid()
    await released(tmp_path)


async def test_a_child_that_has_an_owner_keeps_its_status_until_that_asks(tmp_path: Path) -> None:
    async with reaping(), started("exit 3") as child:
        ended(child.pid)
        pid = await orphan(tmp_path)
        await released(tmp_path)
        await gone(pid)

        assert child.pid in children()
        assert await child.wait() == 3


async def test_of_many_children_and_orphans_at_once_every_owner_gets_its_own_status(
    tmp_path: Path,
) -> None:
    before = children()
    statuses: dict[int, int] = {}

    async def own(number: int) -> None:
        # It leaves an orphan of its own, which ends at any time.
        async with started(f"setsid sh -c 'exit 9' & exit {number}") as child:
            statuses[number] = await child.wait()

    async with reaping():
        orphans = [await orphan(tmp_path / str(number)) for number in range(5)]
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(own, number)
                if number % 40 == 0:
                    os.kill(orphans[number // 40], signal.SIGKILL)
        with anyio.fail_after(SOON_S):
            while children() - before:
                await anyio.sleep(0.002)

    assert statuses == {number: number for number in range(200)}


async def test_an_error_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with reaping():
            raise KeyError


async def test_cancellation_ends_it() -> None:
    with anyio.CancelScope() as scope:
        async with reaping():
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
