from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from corral import (
    EffectiveLimits,
    ErrGVisorNotAvailable,
    ErrProgramNotFound,
    ErrSandboxCreationFailed,
    ErrSandboxExecutionFailed,
    ErrWorkerLost,
    HostLimits,
    Job,
    Outcome,
)
from corral_worker.sandbox import ladder, lifecycle
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.ladder import Life
from corral_worker.sandbox.lifecycle import ColdStart, Report
from corral_worker.sandbox.outcome import Ending, KillCause
from corral_worker.sandbox.place import LogBook
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

Script = Callable[[str, str], None]
Verbs = Callable[[], list[str]]

JOB = Job(argv=("true",))
LIMITS = EffectiveLimits(wall_s=60)
ROOTFS = Path("/images/rootfs.erofs")
SOON_S = 20.0
HOLDINGS = Holdings("01234567")
RUNS_FOR_EVER = "echo $$ >$root/fake/pid; echo begun; state running; exec sleep 1000"
PROGRAM = "sleep 1000 & echo $! >$root/fake/pid;"
"""A process beside that of runsc, as a sandbox is one."""
HANGS = "while :; do sleep 1000; done"
KILLS = "kill -9 $(cat $root/fake/pid)"


class Cgroup:
    """One that holds the fake's program, and does what a test tells it to."""

    runsc_path = "/corral/one"

    def __init__(self, pid: Path) -> None:
        self._pid = pid
        self.refuses: CgroupError | None = None
        self.stays: CgroupError | None = None
        self.on_kill: Callable[[], None] = self.signal
        self.on_counters: Callable[[], None] = lambda: None
        self.cpu_s = 0.0
        self.others: set[int] = set()

    def signal(self, number: signal.Signals = signal.SIGKILL) -> None:
        for pid in self.processes() - self.others:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def create(self, limits: HostLimits) -> HostLimits:
        if self.refuses:
            raise self.refuses
        return limits

    def limit(self, limits: HostLimits) -> HostLimits:
        return limits

    def yield_processor(self) -> None: ...

    def begin(self) -> None: ...

    def counters(self) -> Counters:
        self.on_counters()
        return Counters(cpu_s=self.cpu_s, peak_memory_bytes=1, peak_tasks=1, oom_kills=0)

    def processes(self) -> set[int]:
        try:
            pid = int(self._pid.read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ValueError):
            return self.others
        return self.others if state == "Z" else self.others | {pid}

    def kill(self) -> None:
        self.on_kill()

    def remove(self) -> None:
        if self.stays:
            raise self.stays


class Cgroups(CgroupHost):
    """A host that has this one cgroup."""

    def __init__(self, cgroup: SandboxCgroup) -> None:
        super().__init__(
            "/corral", mountinfo="1 2 0:3 / /cg rw - cgroup2 cgroup2 rw", membership="0::/"
        )
        self._cgroup = cgroup

    def sandbox(self, name: str) -> SandboxCgroup:
        return self._cgroup


@pytest.fixture
def cgroup(runsc: Runsc) -> Cgroup:
    return Cgroup(runsc.root / "fake" / "pid")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "b"
    directory.mkdir()
    return directory


@pytest.fixture
def sandboxes(runsc: Runsc, cgroup: Cgroup, runs: Path) -> ColdStart:
    return ColdStart(
        runsc=runsc, cgroups=Cgroups(cgroup), runs=runs, holdings=HOLDINGS, start_timeout_s=SOON_S
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give everything that never ends little time."""
    for name in ("_KILL_WITHIN_S", "_DELETE_WITHIN_S", "_EMPTY_WITHIN_S"):
        monkeypatch.setattr(ladder, name, 0.3)
    monkeypatch.setattr(lifecycle, "_REMOVE_WITHIN_S", 0.1)


@pytest.fixture
def _patient(_quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what does end all the time that a slow machine needs."""
    for name in ("_KILL_WITHIN_S", "_EMPTY_WITHIN_S", "_LAST_WORDS_WITHIN_S"):
        monkeypatch.setattr(ladder, name, SOON_S)


def left(runsc: Runsc, runs: Path) -> list[str]:
    files = [*runsc.root.iterdir(), *runs.iterdir()]
    return [file.name for file in files if file.name != "fake"]


async def begun(runsc: Runsc) -> None:
    with anyio.fail_after(SOON_S):
        while not [file for file in runsc.root.glob("*.state") if "running" in file.read_text()]:
            await anyio.sleep(0.002)


async def stopped(sandboxes: ColdStart, runsc: Runsc, cause: KillCause = "cancelled") -> Report:
    """Run the job, ask for its end when it runs, and return its report."""
    stop = Stop()
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await sandboxes.run(JOB, LIMITS, ROOTFS, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await begun(runsc)
        stop.request(cause)
    return reports[0]


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


async def test_a_sandbox_that_never_starts_is_given_up_within_its_budget(
    runsc: Runsc, cgroup: Cgroup, runs: Path, verbs: Verbs, script: Script
) -> None:
    script("run", "while :; do sleep 1000; done")
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
    stop = Stop()
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await sandboxes.run(JOB, LIMITS, ROOTFS, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(SOON_S):
            while not await anyio.Path(runsc.root / "fake" / "ready").exists():
                await anyio.sleep(0.002)
        stop.request(cause)

    ending = reports[0].ending
    assert isinstance(ending, ErrWorkerLost | ErrSandboxCreationFailed)
    assert ending.retry_safety == "unknown"


@pytest.mark.usefixtures("_patient")
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
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script, kill: str
) -> None:
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


@pytest.mark.usefixtures("_patient")
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
    sandboxes: ColdStart, runsc: Runsc, runs: Path, cgroup: Cgroup, script: Script
) -> None:
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
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script
) -> None:
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


@pytest.mark.parametrize("delete", ["sleep 1000", "echo broken >&2; exit 1"])
async def test_a_delete_that_does_not_work_leaves_no_file_all_the_same(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script, delete: str
) -> None:
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)
    script("delete", delete)

    report = await stopped(sandboxes, runsc)

    assert report.ending == Ending(outcome=Outcome.CANCELLED, signal=9)
    assert left(runsc, runs) == []


async def test_a_sandbox_that_was_not_seen_dead_is_not_certified_so(
    sandboxes: ColdStart, runsc: Runsc, cgroup: Cgroup, script: Script
) -> None:
    script("run", RUNS_FOR_EVER)
    script("kill", KILLS)
    cgroup.others = {1}

    with capture_logs() as logs:
        report = await stopped(sandboxes, runsc)

    assert report.termination is not None
    assert not report.termination.verified_dead
    assert [entry["event"] for entry in logs] == ["sandbox.not_seen_dead"]


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


@pytest.mark.usefixtures("_patient")
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


def test_a_sentry_cannot_have_a_program_begin_before_its_sandbox(runsc: Runsc) -> None:
    life = Life(LIMITS, runsc.state("corral-1"))

    report = lifecycle.report(
        "corral-1",
        life,
        Stop(),
        LogBook(errors=(), panic="", wait_status=0, begun=True, run_s=3e11),
        counters=Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0),
        host_limits=HostLimits(memory_bytes=1, swap_bytes=0, cpus=1, tasks=1),
        start="cold",
        leftovers=(),
    )

    assert report.start_s >= 0
    assert report.run_s < SOON_S


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
    script("run", "state running; echo before; sleep 0.1; echo 'panic: oops' >$panic; exit 2")

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
    sandboxes: ColdStart, cgroup: Cgroup
) -> None:
    cgroup.stays = CgroupError("cgroup /corral/one cannot be removed: busy")

    with capture_logs() as logs:
        report = await sandboxes.run(JOB, LIMITS, ROOTFS, Stop())

    assert report.leftovers == ("cgroup /corral/one cannot be removed: busy",)
    assert [entry["event"] for entry in logs] == ["sandbox.leftovers"]


@pytest.mark.parametrize("kill", [KILLS, "while :; do sleep 1000; done", "exit 1"])
async def test_cancellation_ends_the_sandbox_before_it_is_passed_on(
    sandboxes: ColdStart, runsc: Runsc, runs: Path, script: Script, kill: str
) -> None:
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
    stop = Stop()
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await sandboxes.run(JOB, LIMITS, ROOTFS, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        while not await anyio.Path(runsc.root / "fake" / "ready").exists():
            await anyio.sleep(0.002)
        stop.request("cancelled")

    assert reports[0].ending == Ending(outcome=Outcome.CANCELLED)
    assert reports[0].termination is not None
    assert reports[0].termination.steps == ("process_kill", "cgroup_kill")
    assert reports[0].termination.verified_dead
    assert verbs() == ["run"]
    assert left(runsc, runs) == []
