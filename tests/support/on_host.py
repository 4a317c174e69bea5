"""A sandbox as its host sees it: processes that can be stopped and killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio

from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.runsc import Runsc

_RUNS_WITHIN_S = 60


class OnHost:
    """The processes of one sandbox."""

    def __init__(self, identifier: str, cgroups: CgroupHost) -> None:
        self.cgroup = cgroups.sandbox(identifier)

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
                    os.kill(pid, signal.SIGKILL)
                await anyio.sleep(0.005)


async def running(runsc: Runsc, cgroups: CgroupHost) -> OnHost:
    """Return the one sandbox that runs, once it does."""
    with anyio.fail_after(_RUNS_WITHIN_S):
        while True:
            for file in runsc.root.glob("*.state"):
                _, _, name = file.stem.partition("_sandbox:")
                if runsc.state(name).status() == "running":
                    return OnHost(name, cgroups)
            await anyio.sleep(0.002)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
