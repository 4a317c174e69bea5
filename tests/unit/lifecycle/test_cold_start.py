"""The life of a sandbox that ends by itself, or never begins."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from support.cold_starts import (
    HANGS,
    HOLDINGS,
    JOB,
    LIMITS,
    PROGRAM,
    ROOTFS,
    SOON_S,
    Cgroup,
    Cgroups,
    GiveUpSoon,
    Script,
    Verbs,
    left,
)

from corral import (
    ErrGVisorNotAvailable,
    ErrProgramNotFound,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    HostLimits,
    Outcome,
)
from corral_worker.process.capture import BoundedOutput, Captured
from corral_worker.process.reading import Feed, Reading, Settling
from corral_worker.sandbox import lifecycle, removal
from corral_worker.sandbox.cgroup import CgroupError, Counters
from corral_worker.sandbox.ladder import Life
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.place import LogBook
from corral_worker.sandbox.report import report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop


async def test_a_program_that_ends_by_itself_needs_no_other_call(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, verbs: Verbs
) -> None:
    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert report.stdout.data == b"hello\n"
    assert report.termination is None
    assert report.leftovers == ()
    assert verbs() == ["run"]
    assert left(runsc, runs) == []


async def test_what_runsc_left_behind_is_deleted(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", "state running; note 768; exit 3")

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=3)
    assert report.termination is None
    assert verbs() == ["run", "delete"]
    assert left(runsc, runs) == []


async def test_a_sentry_cannot_have_a_program_begin_before_its_sandbox(runsc: Runsc) -> None:
    life = Life(LIMITS, runsc.state("corral-1"))

    told = report(
        "corral-1",
        life,
        Stop(),
        LogBook(errors=(), panic="", wait_status=0, begun=True, run_s=3e11),
        streams=(life.stdout.captured(), life.stderr.captured()),
        strain=(None, None),
        counters=Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0),
        host_limits=HostLimits(memory_bytes=1, swap_bytes=0, cpus=1, tasks=1),
        start="cold",
        start_way="command_line",
        leftovers=(),
    )

    assert told.start_s >= 0
    assert told.run_s < SOON_S


async def test_a_program_that_is_missing_is_told_from_a_sandbox_that_fails(
    sandboxes: ColdStart, script: Script
) -> None:
    script(
        "run",
        "echo internal >&2; complain 'starting sandbox: failed to load /x: no such file "
        "or directory'; exit 128",
    )

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert isinstance(report.ending, ErrProgramNotFound)
    assert report.stderr.data == b""


async def test_a_sandbox_that_fails_to_start_says_why_and_never_in_the_jobs_stderr(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script
) -> None:
    script("run", "echo internal >&2; complain 'cannot set up rootfs'; exit 128")

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert isinstance(report.ending, ErrSandboxCreationFailed)
    assert "cannot set up rootfs" in report.ending.detail
    assert "cannot set up rootfs" not in report.ending.message
    assert (report.stderr.data, report.run_s) == (b"", 0.0)
    assert left(runsc, runs) == []


async def test_a_sandbox_that_breaks_while_the_program_runs_is_a_fault(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script
) -> None:
    script("run", "note_begun; echo before; echo 'panic: oops' >$panic; exit 2")

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert isinstance(report.ending, ErrSandboxExecutionFailed)
    assert "panic: oops" in report.ending.detail
    assert "oops" not in report.ending.message
    assert report.stdout.data == b"before\n"
    assert left(runsc, runs) == []


async def test_a_missing_runsc_is_told_and_nothing_is_left(
    cgroup: Cgroup, runs: Path, tmp_path: Path
) -> None:
    missing = Runsc(binary=tmp_path / "none", root=runs, platform="systrap")
    sandboxes = ColdStart(
        runsc=missing, cgroups=Cgroups(cgroup), runs=runs, holdings=HOLDINGS, start_timeout_s=1
    )

    with pytest.raises(ErrGVisorNotAvailable, match="is gone, or was replaced") as raised:
        await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert str(tmp_path) in raised.value.detail
    assert str(tmp_path) not in raised.value.message
    assert left(missing, runs) == []


async def test_a_limit_that_cannot_be_held_refuses_the_job(
    sandboxes: ColdStart, cgroup: Cgroup, runsc: Runsc, runs: Path
) -> None:
    cgroup.refuses = CgroupError("pids.max does not take '5'")

    with pytest.raises(ErrSandboxCreationFailed, match=r"cannot be enforced") as raised:
        await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert raised.value.detail == "pids.max does not take '5'"
    assert "pids.max" not in raised.value.message
    assert raised.value.retry_safety == "not_started"
    assert left(runsc, runs) == []
    assert not (runsc.root / "fake" / "verbs").exists()


async def test_a_bundle_that_cannot_be_written_is_told(
    runsc: Runsc, cgroup: Cgroup, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    sandboxes = ColdStart(
        runsc=runsc,
        cgroups=Cgroups(cgroup),
        runs=tmp_path / "file",
        holdings=HOLDINGS,
        start_timeout_s=1,
    )

    with pytest.raises(
        ErrSandboxCreationFailed, match="bundle cannot be written: Not a directory"
    ) as raised:
        await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert str(tmp_path) in raised.value.detail
    assert str(tmp_path) not in raised.value.message


async def test_what_could_not_be_removed_is_reported_and_logged(
    sandboxes: ColdStart, cgroup: Cgroup, give_up_soon: GiveUpSoon
) -> None:
    give_up_soon("_REMOVE_WITHIN_S", of=removal)
    cgroup.stays = CgroupError("cgroup /corral/one cannot be removed: busy")

    with capture_logs() as logs:
        report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.leftovers == ("cgroup /corral/one cannot be removed: busy",)
    assert [entry["event"] for entry in logs] == ["sandbox.leftovers"]


async def test_a_disk_too_full_for_large_output_is_the_hosts_fault(
    sandboxes: ColdStart,
    runsc: Runsc,
    runs: Path,
    script: Script,
    give_up_soon: GiveUpSoon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_up_soon("_LAST_WORDS_WITHIN_S")

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    script("run", f"{PROGRAM} state running; head -c 1000000 /dev/zero; {HANGS}")

    with pytest.raises(ErrSandboxExecutionFailed, match="No space left on device"):
        await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert left(runsc, runs) == []


@pytest.mark.parametrize("wall_s", [1e-9, 0.01, 60.0])
async def test_however_short_its_wall_limit_a_sandbox_that_boots_leaves_the_worker_in_peace(
    sandboxes: ColdStart, monkeypatch: pytest.MonkeyPatch, wall_s: float
) -> None:
    pauses: list[float] = []
    read = Reading.read

    def noted(
        reading: Reading,
        descriptor: int,
        feed: Feed,
        *,
        settling: Settling | None = None,
        pause_s: float = 0.0,
    ) -> None:
        if pause_s:
            pauses.append(pause_s)
        read(reading, descriptor, feed, settling=settling, pause_s=pause_s)

    monkeypatch.setattr(Reading, "read", noted)

    await sandboxes.run(JOB, replace(LIMITS, wall_s=wall_s), ROOTFS, Stop())

    (pause_s,) = pauses
    assert 0.02 <= pause_s <= 0.25


async def test_a_disk_that_is_slower_than_the_program_loses_none_of_its_output(
    sandboxes: ColdStart,
    runsc: Runsc,
    script: Script,
    give_up_soon: GiveUpSoon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_up_soon("_DRAIN_WITHIN_S", of=lifecycle)
    gave_up = threading.Event()
    leave, write_out = Reading.__exit__, BoundedOutput._write_out

    def told(reading: Reading, *error: object) -> None:
        leave(reading, *error)  # type: ignore[arg-type]
        gave_up.set()

    def slow(output: BoundedOutput, directory: Path) -> None:
        (runsc.root / "fake" / "writes").touch()
        assert gave_up.wait(SOON_S)
        write_out(output, directory)

    monkeypatch.setattr(Reading, "__exit__", told)
    monkeypatch.setattr(BoundedOutput, "_write_out", slow)
    script(
        "run",
        "state running; head -c 70000 /dev/zero;"
        " while [ ! -e $root/fake/writes ]; do sleep 0.01; done; echo the end; note 0; forget",
    )

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    assert (report.stdout.total, report.stdout.gap) == (70_008, None)
    assert report.stdout.data == bytes(70_000) + b"the end\n"


async def test_however_many_wait_for_a_disk_with_their_last_bytes_they_take_few_threads(
    sandboxes: ColdStart, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_a_writer: list[bool] = []
    captured = BoundedOutput.captured

    def noted(output: BoundedOutput) -> Captured:
        if output.on_disk and output._spool is not None:
            by_a_writer.append(output._spool.writers.borrowed_tokens > 0)
        return captured(output)

    monkeypatch.setattr(BoundedOutput, "captured", noted)
    script("run", "state running; head -c 500000 /dev/zero; note 0; forget")

    report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.stdout.total == 500_000
    assert by_a_writer == [True]
