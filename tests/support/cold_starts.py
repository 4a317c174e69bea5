"""Sandboxes of a runsc and a cgroup that do what a test tells them to."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Protocol

import anyio

from corral import EffectiveLimits, HostLimits, Job
from corral_worker.sandbox import ladder
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import KillCause
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

Script = Callable[[str, str], None]
Verbs = Callable[[], list[str]]


class GiveUpSoon(Protocol):
    """Gives what never ends in a test little time; all else has what a slow machine needs."""

    def __call__(self, *bounds: str, of: ModuleType = ladder) -> None:
        """Name the bounds, and the module they are in."""


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
        self.pid = pid
        self.refuses: CgroupError | None = None
        self.stays: CgroupError | None = None
        self.on_kill: Callable[[], None] = self.signal
        self.on_counters: Callable[[], None] = lambda: None
        self.on_remove: Callable[[], object] = lambda: None
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
            pid = int(self.pid.read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ValueError):
            return self.others
        return self.others if state == "Z" else self.others | {pid}

    def kill(self) -> None:
        self.on_kill()

    def remove(self) -> None:
        self.on_remove()
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


def left(runsc: Runsc, runs: Path) -> list[str]:
    files = [*runsc.root.iterdir(), *runs.iterdir()]
    return [file.name for file in files if file.name != "fake"]


async def begun(runsc: Runsc) -> None:
    with anyio.fail_after(SOON_S):
        while not [file for file in runsc.root.glob("*.state") if "running" in file.read_text()]:
            await anyio.sleep(0.002)


async def ready(runsc: Runsc) -> None:
    """Return once the fake says that it is there, though no program runs."""
    with anyio.fail_after(SOON_S):
        while not (runsc.root / "fake" / "ready").exists():
            await anyio.sleep(0.002)


async def stopped(
    sandboxes: ColdStart,
    runsc: Runsc,
    cause: KillCause = "cancelled",
    *,
    when: Callable[[Runsc], Awaitable[None]] = begun,
) -> Report:
    """Run the job, ask for its end when it runs, or earlier, and return its report."""
    stop = Stop()
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await sandboxes.run(JOB, LIMITS, ROOTFS, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await when(runsc)
        stop.request(cause)
    return reports[0]
