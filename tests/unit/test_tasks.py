"""How many tasks are left, and what is done without a thread."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from corral_worker.admission.tasks import TaskRoom
from corral_worker.process.thread import in_thread


def no_more(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host that can have 10,000 tasks, and has 300."""
    proc = tmp_path / "proc"
    (proc / "sys" / "kernel").mkdir(parents=True)
    (proc / "sys" / "kernel" / "threads-max").write_text("10000\n")
    (proc / "sys" / "kernel" / "pid_max").write_text("32768\n")
    (proc / "loadavg").write_text("0.50 0.40 0.30 2/300 4711\n")
    (proc / "self").mkdir()
    (proc / "self" / "cgroup").write_text("8:pids:/a/b\n4:memory:/c\n0::/d/e\n")
    return proc


def mounted(proc: Path, kind: str, options: str) -> Path:
    mount = proc.parent / kind
    (mount / "a" / "b").mkdir(parents=True)
    (mount / "d" / "e").mkdir(parents=True)
    with (proc / "self" / "mountinfo").open("a") as file:
        file.write(f"36 25 0:31 / {mount} rw,nosuid - {kind}  rw,{options}\n")
    return mount


def limit(cgroup: Path, most: str, now: int) -> None:
    (cgroup / "pids.max").write_text(f"{most}\n")
    (cgroup / "pids.current").write_text(f"{now}\n")


def test_without_cgroups_it_is_what_the_kernel_leaves(proc: Path) -> None:
    assert TaskRoom(proc).left() == 9_700


@pytest.mark.parametrize(
    ("kind", "options", "own"), [("cgroup", "pids", "a/b"), ("cgroup2", "nsdelegate", "d/e")]
)
def test_the_tightest_cgroup_counts_be_it_its_own_or_one_above(
    proc: Path, kind: str, options: str, own: str
) -> None:
    mount = mounted(proc, kind, options)
    room = TaskRoom(proc)

    limit(mount / own, "max", 40)
    assert room.left() == 9_700
    limit(mount / own, "60", 40)
    assert room.left() == 20
    limit((mount / own).parent, "100", 90)
    assert room.left() == 10


def test_a_limit_set_below_what_there_is_leaves_none(proc: Path) -> None:
    limit(mounted(proc, "cgroup2", "") / "d" / "e", "1", 3)

    assert TaskRoom(proc).left() == 0


def test_another_hierarchy_of_version_1_does_not_count(proc: Path) -> None:
    mount = mounted(proc, "cgroup", "memory")
    limit(mount / "a" / "b", "60", 40)

    assert TaskRoom(proc).left() == 9_700


def test_a_kernel_that_tells_nothing_is_not_judged(tmp_path: Path) -> None:
    assert TaskRoom(tmp_path).left() is None


def test_where_no_thread_can_be_started_nothing_is_left(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert TaskRoom(proc).left() == 0


async def test_a_short_call_is_made_in_a_thread() -> None:
    assert await in_thread(threading.get_ident) != threading.get_ident()


def test_a_short_call_is_made_at_once_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ident() -> int:
        monkeypatch.setattr(threading.Thread, "start", no_more)
        try:
            return await in_thread(threading.get_ident)
        finally:
            monkeypatch.undo()

    # In an event loop of its own, which has no idle thread yet.
    assert anyio.run(ident) == threading.get_ident()


async def test_an_error_of_the_call_itself_is_its_own() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError):
        await in_thread(fail)
    assert calls == [1]
