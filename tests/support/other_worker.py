"""Workers in processes of their own, to be killed."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from support.host_traces import running_in

from corral import Job
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.runsc import Runsc

SECRET = "secret-of-the-job"
BUSY = Job(
    argv=("/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"),
    env={"TOKEN": SECRET},
)

WORKER = """
import sys
from pathlib import Path

import anyio

from corral import EffectiveLimits, Job
from corral_worker.reaper.claim import Claim
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

state_dir, parent, rootfs, binary, argv, count = sys.argv[1:]
cgroups = CgroupHost.of_this_host(parent)
claim = Claim.make(Path(state_dir), cgroups)
sandboxes = ColdStart(
    runsc=Runsc(binary=Path(binary), root=claim.runsc_root, platform="systrap"),
    cgroups=cgroups,
    runs=claim.runs,
    holdings=Holdings(claim.worker),
    start_timeout_s=60,
)


async def main():
    async with anyio.create_task_group() as tasks:
        for _ in range(int(count)):
            job = Job(argv=("/bin/sh", "-c", argv), env={"TOKEN": "secret-of-the-job"})
            tasks.start_soon(
                sandboxes.run, job, EffectiveLimits(wall_s=500), Path(rootfs), Stop()
            )
        await anyio.sleep_forever()


print(claim.worker, flush=True)
anyio.run(main)
"""


class OtherWorker:
    """A worker in a process of its own, which runs some sandboxes until it is killed."""

    def __init__(self, process: anyio.abc.Process, worker: str, state_dir: Path) -> None:
        self.process = process
        self.worker = worker
        self.directory = state_dir / f"w-{worker}"

    def running(self) -> list[str]:
        """Return the sandboxes whose program runs."""
        return running_in(self.directory / "r")

    async def killed(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def other_worker(
    state_dir: Path,
    parent: CgroupHost,
    runsc: Runsc,
    rootfs: Path,
    count: int = 1,
    *,
    before: tuple[str, ...] = (),
) -> AsyncIterator[OtherWorker]:
    arguments = [state_dir, parent.parent, rootfs, runsc.binary, BUSY.argv[2], count]
    async with await anyio.open_process(
        [*before, sys.executable, "-c", WORKER, *map(str, arguments)], stderr=sys.stderr
    ) as process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(120):
                mark = (await process.stdout.receive()).decode().strip()
                worker = OtherWorker(process, mark, state_dir)
                while len(worker.running()) < count:
                    await anyio.sleep(0.01)
            yield worker
        finally:
            if process.returncode is None:
                process.kill()
