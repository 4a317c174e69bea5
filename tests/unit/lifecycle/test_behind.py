"""What is left of a sandbox when its result is there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio.abc
from structlog.testing import capture_logs
from support.cold_starts import HOLDINGS, JOB, LIMITS, ROOTFS, SOON_S, Cgroup, Cgroups, left

from corral import Outcome
from corral_worker.sandbox.behind import behind
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop


def removing_behind(
    runsc: Runsc, cgroup: Cgroup, runs: Path, tasks: anyio.abc.TaskGroup
) -> ColdStart:
    return ColdStart(
        runsc=runsc,
        cgroups=Cgroups(cgroup),
        runs=runs,
        holdings=HOLDINGS,
        start_timeout_s=SOON_S,
        behind=tasks,
    )


async def test_a_result_does_not_wait_for_the_removal_of_its_dead_sandbox(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    may_go = threading.Event()
    cgroup.on_remove = lambda: may_go.wait(SOON_S)

    async with behind() as tasks:
        report = await removing_behind(runsc, cgroup, runs, tasks).run(JOB, LIMITS, ROOTFS, Stop())
        there, held = left(runsc, runs), HOLDINGS.now()
        may_go.set()

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert there == [*held]
    assert left(runsc, runs) == []
    assert not HOLDINGS.now()


async def test_a_result_waits_for_the_end_of_what_outlived_the_program(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    cgroup.others, cgroup.stays = {os.getpid()}, CgroupError("busy")

    def ends() -> None:
        cgroup.others, cgroup.stays = set(), None

    cgroup.on_kill = ends
    async with behind() as tasks:
        report = await removing_behind(runsc, cgroup, runs, tasks).run(JOB, LIMITS, ROOTFS, Stop())

        assert cgroup.others == set()
        assert left(runsc, runs) == []

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert report.leftovers == ()


async def test_a_removal_that_fails_is_logged_and_takes_nothing_along(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    def fails() -> None:
        raise ValueError("a mistake of ours")

    cgroup.on_remove = fails
    with capture_logs() as logs:
        async with behind() as tasks:
            sandboxes = removing_behind(runsc, cgroup, runs, tasks)
            reports = [await sandboxes.run(JOB, LIMITS, ROOTFS, Stop()) for _ in range(2)]

    assert [report.ending for report in reports] == [
        Ending(outcome=Outcome.EXITED, exit_code=0)
    ] * 2
    assert [entry["event"] for entry in logs] == ["sandbox.not_removed"] * 2
