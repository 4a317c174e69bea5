from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import anyio
import pytest

from corral_worker.process.call import PATH, CallTimeoutError, call
from corral_worker.process.child import ChildProcess, child_process
from corral_worker.process.output import Pipe

SOON_S = 20.0


def descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def children() -> set[str]:
    """Return the pids of this process's children, ended ones that nobody reaped among them."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
async def _no_child_and_no_descriptor_is_left() -> AsyncIterator[None]:
    # Servers of other tests may be running.
    before = descriptors(), children()
    yield
    assert (descriptors(), children()) == before


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def appears(file: Path) -> str:
    """Return what was written to a file, once it is there."""
    with anyio.fail_after(SOON_S):
        while not (text := await _text(file)).endswith("\n"):
            await anyio.sleep(0.005)
    return text


async def _text(file: Path) -> str:
    try:
        return await anyio.Path(file).read_text()
    except FileNotFoundError:
        return ""


async def dead(pid: int) -> bool:
    """Return whether a process dies; one whose parent died may be a zombie for a while."""
    with anyio.move_on_after(SOON_S):
        while True:
            stat = await _text(Path(f"/proc/{pid}/stat"))
            if not stat or stat.rpartition(")")[2].split()[0] == "Z":
                return True
            await anyio.sleep(0.005)
    return False


def started(script: str) -> AbstractAsyncContextManager[ChildProcess]:
    return child_process(
        ["/bin/sh", "-c", script],
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -15 $$", -15)]
)
async def test_a_childs_status_is_its_exit_code_or_its_signal(script: str, status: int) -> None:
    async with started(script) as child:
        assert await child.wait() == status
        assert await child.wait() == status


async def test_a_childs_files_have_the_usual_modes_whatever_the_workers_umask(
    tmp_path: Path,
) -> None:
    before = os.umask(0o077)
    try:
        async with started(f"touch {tmp_path}/file") as child:
            assert await child.wait() == 0
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


async def test_a_child_can_be_made_to_go_first_when_memory_is_short() -> None:
    async with child_process(
        ["sleep", "1000"],
        env={"PATH": PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        oom_score_adj=321,
    ) as child:
        score = await _text(Path(f"/proc/{child.pid}/oom_score_adj"))

    assert score == "321\n"


SAYS_ITS_POLICY = (
    "import os, subprocess, sys; print(os.sched_getscheduler(0), flush=True);"
    " subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0))'])"
)


async def test_a_child_and_its_children_have_the_scheduling_policy_they_are_given() -> None:
    before = os.sched_getscheduler(0)

    with Pipe(parent="read") as said:
        async with child_process(
            [sys.executable, "-c", SAYS_ITS_POLICY],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=said.theirs,
            stderr=subprocess.DEVNULL,
            scheduling=os.SCHED_BATCH,
        ) as child:
            after = os.sched_getscheduler(0)
            assert await child.wait() == 0
        policies = os.read(said.ours, 100).split()

    assert policies == [b"%d" % os.SCHED_BATCH] * 2
    assert after == before


async def test_a_child_is_started_where_policies_may_not_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_pid: int, _policy: int, _param: os.sched_param) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)

    async with child_process(
        ["true"],
        env={"PATH": PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        scheduling=os.SCHED_BATCH,
    ) as child:
        assert await child.wait() == 0


async def test_a_child_that_still_runs_is_killed_at_the_end_of_the_block() -> None:
    async with started("trap '' TERM; while :; do sleep 1; done") as child:
        pid = child.pid

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_child_is_killed_if_the_block_raises() -> None:
    with pytest.raises(LookupError):
        async with started("sleep 1000"):
            raise LookupError


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.1])
async def test_a_child_is_killed_if_its_task_is_cancelled(delay_s: float) -> None:
    with anyio.move_on_after(delay_s) as scope:
        async with started("sleep 1000 & wait") as child:
            await child.wait()

    assert scope.cancelled_caught


@pytest.mark.parametrize("end", ["wait", "exit 0"], ids=["that runs", "that ended"])
async def test_the_grandchildren_of_a_child_are_killed_with_it(tmp_path: Path, end: str) -> None:
    script = f"(trap '' TERM HUP; sleep 1000) & echo $! > {tmp_path}/pid; {end}"
    async with started(script) as child:
        grandchild = int(await appears(tmp_path / "pid"))
        if end != "wait":
            await child.wait()

    assert await dead(grandchild)


async def test_to_kill_a_child_that_has_ended_is_no_error() -> None:
    async with started("exit 0") as child:
        await child.wait()
        child.kill_group()
        child.kill_group()


async def test_a_child_has_a_session_of_its_own_and_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    script = (
        f"{{ cut -d' ' -f 6 /proc/$$/stat; pwd; echo /proc/$$/fd/*;"
        f" tr '\\0' ' ' </proc/$$/environ; echo; }} > {tmp_path}/found"
    )
    try:
        async with child_process(
            shell(script),
            env={"ONLY": "this"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert await child.wait() == 0
            session, directory, files, environment = (tmp_path / "found").read_text().splitlines()
    finally:
        os.close(inheritable)

    assert int(session) == child.pid
    assert directory == "/"
    assert f"/proc/{child.pid}/fd/{inheritable}" not in files.split()
    assert environment.split() == ["ONLY=this"]


@pytest.mark.parametrize("program", ["/nothing/here", "/etc/passwd", "/etc"])
async def test_what_cannot_be_executed_is_an_os_error(program: str) -> None:
    with pytest.raises(OSError, match=program):
        await call([program], within_s=SOON_S)


async def test_a_call_returns_what_was_printed_and_how_it_ended() -> None:
    done = await call(shell("echo out; echo err >&2; exit 7"), within_s=SOON_S)

    assert (done.status, done.stdout.data, done.stderr.data) == (7, b"out\n", b"err\n")


async def test_a_call_has_no_input() -> None:
    done = await call(["cat"], within_s=SOON_S)

    assert (done.status, done.stdout.data) == (0, b"")


async def test_a_call_gets_a_path_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("SECRET", "of the worker")

    done = await call(["env"], within_s=SOON_S)

    assert done.stdout.data.decode() == f"PATH={PATH}\n"


async def test_a_call_that_names_an_environment_gets_that_alone() -> None:
    done = await call(["/usr/bin/env"], within_s=SOON_S, env={"A": "b"})

    assert done.stdout.data == b"A=b\n"


async def test_a_flood_is_kept_in_part_and_does_not_block_the_tool() -> None:
    script = "echo first; yes | head -c 30000000; echo last; yes | head -c 30000000 >&2"

    done = await call(shell(script), within_s=SOON_S, keep_bytes=1000)

    assert done.status == 0
    assert (len(done.stdout.data), len(done.stderr.data)) == (1000, 1000)
    assert done.stdout.data.startswith(b"first\n")
    assert done.stdout.data.endswith(b"last\n")


async def test_a_call_that_takes_too_long_is_killed_with_all_its_group(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo so far; sleep 1000 & echo $$ $! > {tmp_path}/pids; wait"

    with pytest.raises(CallTimeoutError) as raised:
        await call(shell(script), within_s=0.5)

    assert raised.value.stdout.data == b"so far\n"
    for pid in (tmp_path / "pids").read_text().split():
        assert await dead(int(pid))


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.1, 0.3])
async def test_a_call_can_be_cancelled_at_any_moment(delay_s: float) -> None:
    began = time.monotonic()

    with anyio.move_on_after(delay_s) as scope:
        await call(shell("yes & yes >&2 & sleep 1000"), within_s=1000)

    assert scope.cancelled_caught
    assert time.monotonic() - began < SOON_S


async def test_a_grandchild_that_holds_the_output_open_does_not_keep_the_call(
    tmp_path: Path,
) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; echo done"

    done = await call(shell(script), within_s=SOON_S)

    assert (done.status, done.stdout.data) == (0, b"done\n")
    assert await dead(int((tmp_path / "pid").read_text()))


async def test_a_tool_that_the_host_cannot_watch_is_an_os_error_and_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(anyio, "wait_readable", refused)

    with pytest.raises(OSError, match="No space left on device"):
        await call(shell("sleep 1000"), within_s=SOON_S)


async def test_many_calls_at_the_same_time_do_not_hold_each_other_up() -> None:
    done: list[bytes] = []

    async def run(number: int) -> None:
        done.append((await call(["echo", str(number)], within_s=SOON_S)).stdout.data)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(run, number)

    assert sorted(map(int, done)) == list(range(20))


async def test_a_stopped_child_is_killed_too() -> None:
    async with started("sleep 1000") as child:
        os.kill(child.pid, signal.SIGSTOP)
        with anyio.move_on_after(0.05):
            await child.wait()
