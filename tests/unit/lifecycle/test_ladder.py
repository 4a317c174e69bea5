"""The end of a sandbox that is ended: rung by rung, whatever fails."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs
from support.cold_starts import (
    HANGS,
    HOLDINGS,
    JOB,
    KILLS,
    LIMITS,
    PROGRAM,
    ROOTFS,
    RUNS_FOR_EVER,
    SOON_S,
    Cgroup,
    Cgroups,
    GiveUpSoon,
    Script,
    Verbs,
    begun,
    left,
    ready,
    stopped,
)
from support.threads import none_left

from corral import ErrSandboxCreationFailed, ErrWorkerLost, Outcome
from corral_worker.sandbox import ladder
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending, KillCause
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop


async def test_a_sandbox_that_never_starts_is_given_up_within_its_budget(
    runsc: Runsc, cgroup: Cgroup, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", HANGS)
    impatient = ColdStart(
        runsc=runsc, cgroups=Cgroups(cgroup), runs=runs, holdings=HOLDINGS, start_timeout_s=0.2
    )

    report = await impatient.run(JOB, LIMITS, ROOTFS, Stop())

    assert isinstance(report.ending, ErrSandboxCreationFailed)
    assert "within its budget" in report.ending.message
    assert report.ending.retry_safety == "not_started"
    # A delete would wait for PID 1 to reap the orphan.
    assert verbs() == ["run"]
    assert left(runsc, runs) == []


@pytest.mark.parametrize("cause", ["shutdown", "start_timeout"])
async def test_a_sandbox_that_was_ready_may_have_begun(
    sandboxes: ColdStart, runsc: Runsc, script: Script, cause: KillCause
) -> None:
    script("run", "state created; touch $root/fake/ready; while :; do sleep 1000; done")

    report = await stopped(sandboxes, runsc, cause, when=ready)

    assert isinstance(report.ending, ErrWorkerLost | ErrSandboxCreationFailed)
    assert report.ending.retry_safety == "unknown"


async def test_a_running_sandbox_is_killed_by_runsc_and_by_its_cgroup_at_once(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", RUNS_FOR_EVER)

    with capture_logs() as logs:
        report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.stdout.data == b"begun\n"
    assert report.termination is not None
    assert report.termination.steps == ("runsc_kill", "cgroup_kill", "runsc_delete")
    assert report.termination.requested_by == "caller"
    assert report.termination.verified_dead
    assert verbs() == ["run", "kill", "delete"]
    assert left(runsc, runs) == []
    assert logs == []


async def test_a_runsc_that_has_cleaned_up_behind_its_sandbox_needs_no_rung_for_it(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", f"{PROGRAM} state running; wait; forget; exit 137")

    report = await stopped(sandboxes, runsc)

    assert report.termination is not None
    assert report.termination.steps == ("runsc_kill", "cgroup_kill")
    assert verbs() == ["run", "kill", "delete"]
    assert left(runsc, runs) == []


@pytest.mark.parametrize(
    "kill",
    [
        HANGS,
        "exit 0",
        "echo 'container does not exist' >&2; exit 128",
        "echo 'cannot kill container in state created' >&2; exit 1",
        "kill -9 $$",
    ],
    ids=["hangs", "does nothing", "knows nothing", "refuses", "crashes"],
)
async def test_a_runsc_that_cannot_kill_changes_nothing(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    script: Script,
    give_up_soon: GiveUpSoon,
    kill: str,
) -> None:
    if kill == HANGS:
        give_up_soon("_KILL_WITHIN_S")
    script("run", f"trap '' TERM INT HUP; {RUNS_FOR_EVER}")
    script("kill", kill)

    with capture_logs() as logs:
        report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.stdout.data == b"begun\n"
    assert report.termination is not None
    assert report.termination.steps == ("runsc_kill", "cgroup_kill", "runsc_delete")
    assert report.termination.verified_dead
    assert left(runsc, runs) == []
    assert len(logs) == (kill == HANGS)


async def test_a_kill_that_hangs_is_told_and_does_not_delay_the_death(
    sandboxes: ColdStart, runsc: Runsc, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "_KILL_WITHIN_S", 3.0)
    script("run", RUNS_FOR_EVER)
    script("kill", HANGS)

    with capture_logs() as logs:
        report = await stopped(sandboxes, runsc)

    assert report.termination is not None
    assert report.termination.latency_s < 3.0 < report.teardown_s + report.termination.latency_s
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("sandbox.rung_failed", "warning")
    ]
    assert "kill" in logs[0]["detail"]


@pytest.mark.parametrize("refusal", [None, PermissionError("not in this namespace")])
async def test_where_the_cgroup_cannot_be_killed_runsc_is_enough(
    sandboxes: ColdStart,
    runsc: Runsc,
    cgroup: Cgroup,
    script: Script,
    refusal: PermissionError | None,
) -> None:
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)

    def kill() -> None:
        if refusal:
            raise refusal

    cgroup.on_kill = kill

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.termination is not None
    assert report.termination.steps == ("runsc_kill", "cgroup_kill", "runsc_delete")
    assert report.termination.verified_dead


async def test_where_neither_can_kill_the_process_is_killed(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    cgroup: Cgroup,
    script: Script,
    give_up_soon: GiveUpSoon,
) -> None:
    give_up_soon("_EMPTY_WITHIN_S", "_LAST_WORDS_WITHIN_S")
    script("run", RUNS_FOR_EVER)
    script("kill", "exit 1")
    cgroup.on_kill = lambda: None

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.termination is not None
    assert report.termination.steps == (
        "runsc_kill",
        "cgroup_kill",
        "process_kill",
        "runsc_delete",
    )
    assert report.termination.verified_dead
    assert left(runsc, runs) == []


async def test_a_runsc_that_outlives_its_sandbox_is_killed_and_does_not_delay_the_death(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    script: Script,
    give_up_soon: GiveUpSoon,
) -> None:
    give_up_soon("_LAST_WORDS_WITHIN_S")
    script("run", f"{PROGRAM} state running; trap '' TERM; while :; do sleep 1; done")

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert report.termination is not None
    assert report.termination.steps == (
        "runsc_kill",
        "cgroup_kill",
        "process_kill",
        "runsc_delete",
    )
    assert report.termination.verified_dead
    assert report.teardown_s > ladder._LAST_WORDS_WITHIN_S
    assert left(runsc, runs) == []


@pytest.mark.parametrize("delete", [HANGS, "echo broken >&2; exit 1"])
async def test_a_delete_that_does_not_work_leaves_no_file_all_the_same(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    script: Script,
    give_up_soon: GiveUpSoon,
    delete: str,
) -> None:
    if delete == HANGS:
        give_up_soon("_DELETE_WITHIN_S")
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)
    script("delete", delete)

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert left(runsc, runs) == []


async def test_a_sandbox_that_was_not_seen_dead_is_not_certified_so(
    sandboxes: ColdStart,
    runsc: Runsc,
    cgroup: Cgroup,
    script: Script,
    give_up_soon: GiveUpSoon,
) -> None:
    give_up_soon("_EMPTY_WITHIN_S")
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)
    cgroup.others = {1}

    with capture_logs() as logs:
        report = await stopped(sandboxes, runsc)

    assert report.termination is not None
    assert not report.termination.verified_dead
    assert [entry["event"] for entry in logs] == ["sandbox.not_seen_dead"]


async def test_a_sandbox_is_killed_though_all_threads_wait_for_a_disk(
    sandboxes: ColdStart, runsc: Runsc, cgroup: Cgroup, script: Script
) -> None:
    script("run", RUNS_FOR_EVER)
    stop, killed = Stop(), threading.Event()

    def kill() -> None:
        killed.set()
        cgroup.signal()

    cgroup.on_kill = kill
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sandboxes.run, JOB, LIMITS, ROOTFS, stop)
        await begun(runsc)
        async with none_left():
            stop.request("cancelled")
            with anyio.fail_after(SOON_S):
                while not killed.is_set():
                    await anyio.sleep(0.002)


async def test_a_limit_of_processor_time_is_watched(
    sandboxes: ColdStart, cgroup: Cgroup, script: Script
) -> None:
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)
    cgroup.cpu_s = LIMITS.cpu_time_s

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.ending == Ending(outcome=Outcome.CPU_TIMEOUT, signal=9)
    assert report.termination is not None
    assert report.termination.requested_by == "limit"


async def test_a_program_that_was_faster_than_its_killer_ended_by_itself(
    sandboxes: ColdStart, runsc: Runsc, cgroup: Cgroup, script: Script
) -> None:
    script(
        "run",
        "trap 'note 768; exit 3' USR1; echo $$ >$root/fake/pid; state running;"
        " while :; do sleep 0.01; done",
    )
    cgroup.on_kill = lambda: cgroup.signal(signal.SIGUSR1)

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=3)
    assert report.termination is None


async def test_a_stop_that_comes_after_the_end_is_not_its_cause(
    sandboxes: ColdStart, cgroup: Cgroup, script: Script
) -> None:
    script("run", "note 9; exit 137")
    stop = Stop()
    # Nobody asks for the counters of a program that was not seen running before it has ended.
    cgroup.on_counters = lambda: stop.request("cancelled")

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, stop)

    assert report.ending == Ending(outcome=Outcome.SIGNALLED, signal=9)
    assert report.termination is None


@pytest.mark.parametrize("kill", [KILLS, HANGS, "exit 1"])
async def test_cancellation_ends_the_sandbox_before_it_is_passed_on(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    script: Script,
    give_up_soon: GiveUpSoon,
    kill: str,
) -> None:
    if kill == HANGS:
        give_up_soon("_KILL_WITHIN_S")
    script("run", f"trap '' TERM; {RUNS_FOR_EVER}")
    script("kill", kill)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sandboxes.run, JOB, LIMITS, ROOTFS, Stop())
            await begun(runsc)
            scope.cancel()

    assert left(runsc, runs) == []
    pid = (runsc.root / "fake" / "pid").read_text().strip()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_a_sandbox_that_is_being_started_loses_its_runsc_first(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", "touch $root/fake/ready; exec sleep 1000")

    report = await stopped(sandboxes, runsc, when=ready)

    assert report.ending == Ending(outcome=Outcome.CANCELLED)
    assert report.termination is not None
    assert report.termination.steps == ("process_kill", "cgroup_kill")
    assert report.termination.verified_dead
    assert verbs() == ["run"]
    assert left(runsc, runs) == []
