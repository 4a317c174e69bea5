"""What is left of a sandbox when its result is there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs
from support.cold_starts import HOLDINGS, JOB, LIMITS, ROOTFS, SOON_S, Cgroup, Cgroups, left
from support.threads import none_left

from corral import Outcome
from corral_worker.process.capture import Spool
from corral_worker.sandbox import removal as module
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.removal import Remains, Removal
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop


def removing_later(runsc: Runsc, cgroup: Cgroup, runs: Path, removal: Removal) -> ColdStart:
    return ColdStart(
        runsc=runsc,
        cgroups=Cgroups(cgroup),
        runs=runs,
        holdings=HOLDINGS,
        start_timeout_s=SOON_S,
        removal=removal,
    )


async def test_a_result_does_not_wait_for_the_removal_of_its_dead_sandbox(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    may_go = threading.Event()
    cgroup.on_remove = lambda: may_go.wait(SOON_S)

    async with Removal.open(runsc) as removal:
        sandboxes = removing_later(runsc, cgroup, runs, removal)
        report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())
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
    async with Removal.open(runsc) as removal:
        sandboxes = removing_later(runsc, cgroup, runs, removal)
        report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

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
        async with Removal.open(runsc) as removal:
            sandboxes = removing_later(runsc, cgroup, runs, removal)
            reports = [await sandboxes.run(JOB, LIMITS, ROOTFS, Stop()) for _ in range(2)]

    assert [report.ending for report in reports] == [
        Ending(outcome=Outcome.EXITED, exit_code=0)
    ] * 2
    # In one batch or in two: that depends on how fast the host is.
    events = sorted(entry["event"] for entry in logs)
    assert events == ["sandbox.leftovers"] * 2 + ["sandbox.not_removed"] * 2
    assert not HOLDINGS.now()


async def test_a_result_that_waits_for_a_removal_which_fails_says_what_is_left(
    runsc: Runsc, cgroup: Cgroup, runs: Path
) -> None:
    def fails() -> None:
        raise ValueError("a mistake of ours")

    cgroup.others, cgroup.on_remove = {os.getpid()}, fails
    async with Removal.open(runsc) as removal:
        sandboxes = removing_later(runsc, cgroup, runs, removal)
        report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.leftovers == (f"{report.sandbox}: ValueError",)


def dead(names: tuple[str, ...], runs: Path, cgroup: Cgroup) -> list[Remains]:
    found = [Remains(Place(name, runs, Cgroups(cgroup), Spool.new_writers())) for name in names]
    for remains in found:
        remains.place.bundle.mkdir()
    return found


IDS = ("corral-01234567-00000a", "corral-01234567-00000b", "corral-01234567-00000c")


async def test_those_that_die_at_the_same_time_are_deleted_by_one_runsc(
    runsc: Runsc,
    cgroup: Cgroup,
    runs: Path,
    verbs: Callable[[], list[str]],
    argv: Callable[[str], list[str]],
) -> None:
    places = dead(IDS, runs, cgroup)
    gone = anyio.Event()

    async with Removal.open(runsc) as removal:
        for remains in places:
            remains.to_delete = remains is not places[1]
            with ExitStack() as stack:
                stack.callback(gone.set)
                removal.add(remains, stack.pop_all())
        with anyio.fail_after(SOON_S):
            await gone.wait()

    assert verbs() == ["delete"]
    assert [word for word in argv("delete") if word in IDS] == [IDS[0], IDS[2]]
    assert left(runsc, runs) == []


async def test_what_no_thread_was_free_to_remove_is_told_as_left(
    runsc: Runsc, cgroup: Cgroup, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WITHIN_S", 0.05)
    (remains,) = dead(IDS[:1], runs, cgroup)

    with capture_logs() as logs:
        async with none_left():
            await module.remove(runsc, [remains])

    assert remains.left == (f"{IDS[0]}: no thread was free to remove it",)
    assert [entry["event"] for entry in logs] == ["sandbox.leftovers"]


async def test_what_is_still_to_be_removed_at_the_end_is_removed_then(
    runsc: Runsc, cgroup: Cgroup, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 3600.0)

    with anyio.CancelScope() as scope:
        async with Removal.open(runsc) as removal:
            for remains in dead(IDS, runs, cgroup):
                removal.add(remains, ExitStack())
            scope.cancel()

    assert left(runsc, runs) == []


@pytest.mark.parametrize("fault", ["echo broken >&2; exit 1", "while :; do sleep 1000; done"])
async def test_a_runsc_that_does_not_delete_keeps_nothing_on_the_host(
    runsc: Runsc,
    cgroup: Cgroup,
    runs: Path,
    script: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(module, "_DELETE_WITHIN_S", 0.3)
    script("delete", fault)
    (remains,) = dead(IDS[:1], runs, cgroup)
    remains.to_delete = True

    with capture_logs() as logs:
        async with Removal.open(runsc) as removal:
            removal.add(remains, ExitStack())

    assert left(runsc, runs) == []
    assert [entry["event"] for entry in logs] == ["sandbox.not_deleted"]


async def test_whatever_fails_when_runsc_is_to_delete_keeps_nothing_on_the_host(
    runsc: Runsc, cgroup: Cgroup, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise ExceptionGroup("in a task", [OSError(errno.ENOSPC, "no watch left")])

    monkeypatch.setattr(Runsc, "delete", fails)
    (remains,) = dead(IDS[:1], runs, cgroup)
    remains.to_delete = True

    with capture_logs() as logs:
        async with Removal.open(runsc) as removal:
            removal.add(remains, ExitStack())

    assert left(runsc, runs) == []
    assert [(entry["event"], entry.get("exc_info")) for entry in logs] == [
        ("sandbox.not_deleted", True)
    ]
