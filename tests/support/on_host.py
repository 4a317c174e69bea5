"""A sandbox as its host sees it: processes that can be stopped and killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import anyio

from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_processes import heads
from corral_worker.sandbox.runsc import Runsc

_RUNS_WITHIN_S = 60


class OnHost:
    """The processes of one sandbox."""

    def __init__(self, identifier: str, cgroups: CgroupHost) -> None:
        self.identifier = identifier
        self.cgroup = cgroups.sandbox(identifier)

    def stands(self) -> bool:
        """Return whether its sentry is stopped. Processes of guests stop when they are made."""
        return any(map(stands, heads(self.cgroup.processes())))

    def runsc_run(self) -> int:
        """Return the pid of its ``runsc run``: the parent of the sentry, outside of the cgroup."""
        pids = self.cgroup.processes()
        parents = {_parent(pid) for pid in pids} - pids
        (parent,) = parents - {os.getpid()}
        return parent

    def stop_sentry(self) -> None:
        """Stop the sentry and all that it has started."""
        for pid in self.cgroup.processes():
            os.kill(pid, signal.SIGSTOP)

    def stop_runsc(self) -> None:
        """Stop its ``runsc run``."""
        os.kill(self.runsc_run(), signal.SIGSTOP)

    def stop_all(self) -> None:
        """Stop both."""
        self.stop_runsc()
        self.stop_sentry()

    async def kill_sentry(self) -> None:
        """Kill the sentry and all that it has started, and return when they are gone."""
        with anyio.fail_after(_RUNS_WITHIN_S):
            while pids := self.cgroup.processes():
                for pid in pids:
                    # What the sentry has started can have gone with it by now.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await anyio.sleep(0.005)


async def running(runsc: Runsc, cgroups: CgroupHost) -> OnHost:
    """Return the one sandbox that runs, once it does."""
    with anyio.fail_after(_RUNS_WITHIN_S):
        while not (found := running_ones(runsc, cgroups)):
            await anyio.sleep(0.002)
        return found[0]


def running_ones(runsc: Runsc, cgroups: CgroupHost) -> list[OnHost]:
    """Return all sandboxes that run."""
    names = (file.stem.partition("_sandbox:")[2] for file in runsc.root.glob("*.state"))
    return [
        OnHost(name, cgroups)
        for name in dict.fromkeys(names)
        if runsc.state(name).status() == "running"
    ]


def stands(pid: int) -> bool:
    """Return whether a process is stopped."""
    return _stat(pid).startswith("T")


def _parent(pid: int) -> int:
    return int(_stat(pid).split()[1])


def _stat(pid: int) -> str:
    """Return what the kernel says behind the name, beginning with the state: see proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except (FileNotFoundError, ProcessLookupError):
        return "X 0"
