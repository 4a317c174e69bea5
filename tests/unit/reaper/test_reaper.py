"""Looks again and again, what they tell, and what they survive."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs
from support.estates import A_MINUTE, OF_ITS_WORKER, OF_ONE_SANDBOX, furnish, killed, living

from corral_worker.reaper import reaper as reapers
from corral_worker.reaper.reaper import Reaper
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings


async def test_it_logs_and_counts_what_dead_workers_left(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    furnish(killed(state_dir, cgroups), cgroups)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        await reaper.reap()
        furnish(killed(state_dir, cgroups), cgroups)
        await reaper.reap()
        await reaper.reap()

    assert [entry["event"] for entry in logs] == ["reaper.cleaned_up"] * 2
    assert logs[0]["cgroup"] == logs[0]["bundle"] == logs[0]["directory"] == 1
    assert "mount" not in logs[0]
    both = OF_ONE_SANDBOX + OF_ITS_WORKER
    assert reaper.removed == both + both


async def test_a_leftover_of_its_own_worker_is_an_error(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with living(state_dir, cgroups) as claim:
        holdings = Holdings(claim.worker)
        reaper = Reaper(state_dir=state_dir, cgroups=cgroups, own=(holdings, claim.directory))
        with holdings.hold() as held, capture_logs() as logs:
            (claim.runs / held).mkdir()
            for _ in range(3):
                await reaper.reap()
        assert logs == []

        with capture_logs() as logs:
            await reaper.reap()
            assert (claim.runs / held).exists()
            await reaper.reap()
        assert not (claim.runs / held).exists()
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [
            ("reaper.stray", "error")
        ]
        assert (logs[0]["kind"], logs[0]["sandbox"]) == ("bundle", held)


async def test_what_stays_is_told_once_as_long_as_its_reason_stays(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    dead.directory.chmod(0o777)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        for _ in range(3):
            await reaper.reap()
        dead.directory.chmod(0o700)
        (dead.directory / "owner").unlink()
        for _ in range(3):
            await reaper.reap()

    assert [entry["reason"] for entry in logs] == [
        "another user made it, or may write to it",
        "does not say who made it",
    ]


async def test_that_time_is_short_is_told_once(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        for within_s in (0, 0, A_MINUTE, 0):
            monkeypatch.setattr(reapers, "_SWEEP_WITHIN_S", within_s)
            await reaper.reap()

    assert [entry["event"] for entry in logs] == ["reaper.out_of_time"] * 2


async def test_nothing_that_goes_wrong_gets_out(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> Sweep:
        raise ZeroDivisionError

    monkeypatch.setattr(Sweeper, "sweep", breaks)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        assert await reaper.reap() == Sweep(complete=False)

    assert logs[0]["event"] == "reaper.failed"


async def test_a_file_system_that_does_not_answer_is_not_waited_for(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    calls: list[Deadline] = []

    def hangs(_: Sweeper, __: frozenset[str], deadline: Deadline) -> Sweep:
        calls.append(deadline)
        answers.wait(A_MINUTE)
        return Sweep()

    monkeypatch.setattr(Sweeper, "_sweep", hangs)
    monkeypatch.setattr(reapers, "_SWEEP_WITHIN_S", 0.1)
    monkeypatch.setattr(reapers, "_ANSWERS_WITHIN_S", 0.1)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)
    try:
        first = await reaper.reap()
        second = await reaper.reap()
        with pytest.raises(TimeoutError):
            await reaper.survey()
    finally:
        answers.set()

    assert first == second == Sweep(complete=False)
    # The second did not even begin: threads that hang are not to pile up.
    assert [deadline.is_over for deadline in calls] == [True]


async def test_it_comes_round_until_it_is_cancelled(state_dir: Path, cgroups: CgroupHost) -> None:
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)
    with anyio.fail_after(A_MINUTE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reaper.run, 0.01)
            for _ in range(2):
                dead = killed(state_dir, cgroups)
                while dead.directory.exists():
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
