"""Workers as an operator runs them, and what there is of them on the host."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from support.host_traces import mentions

from corral import Job, JobStatus, SubmittedJob

SLEEPER = Job(argv=("sh", "-c", "echo started; sleep 60"), image="base")
HELLO = Job(argv=("echo", "hello"), image="base")


class RunningWorker:
    """A worker process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def logged(self, event: str) -> None:
        while not any(entry["event"] == event for entry in self.events()):
            assert self.process.poll() is None, self._log.read_text()
            await anyio.sleep(0.02)

    async def stopped(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(120):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@asynccontextmanager
async def started_worker(
    environ: Mapping[str, str], *, by: Sequence[str] = ()
) -> AsyncIterator[RunningWorker]:
    """Start a worker, by another program if one is given."""
    log = Path(environ["CORRAL_STATE_DIR"]) / "worker.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: ASYNC220 - its end is waited for in a thread
            [*by, sys.executable, "-m", "corral_worker", "worker"], env=environ, stderr=stream
        )
    worker = RunningWorker(process, log)
    try:
        with anyio.fail_after(120):
            await worker.logged("worker.ready")
        yield worker
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def running_worker(environ: Mapping[str, str]) -> AsyncIterator[RunningWorker]:
    async with started_worker(environ) as worker:
        yield worker
        if worker.process.poll() is None:
            assert await worker.stopped() == 0
        assert left_behind(environ) == []


def left_behind(environ: Mapping[str, str]) -> list[str]:
    state = environ["CORRAL_STATE_DIR"]
    return [
        *map(str, sandbox_cgroups(environ)),
        *(str(path) for path in Path(state).glob("w-*")),
        *(line for line in Path("/proc/mounts").read_text().splitlines() if state in line),
        *mentions(state),
    ]


def running_programs(state_dir: Path) -> list[Path]:
    found = state_dir.glob("w-*/r/*.state")
    return [file for file in found if b'"status":"running"' in _read(file)]


def sandbox_cgroups(environ: Mapping[str, str]) -> list[Path]:
    """Return the cgroups that are there for sandboxes."""
    parent = environ["CORRAL_CGROUP_PARENT"].lstrip("/")
    return [
        # Version 1 has a parent in each hierarchy.
        *Path("/sys/fs/cgroup").glob(f"*/{parent}"),
        # The parent in version 2 serves other workers, too, and stays.
        *(path for path in unified_parent(environ).glob("*") if path.is_dir()),
    ]


def unified_parent(environ: Mapping[str, str]) -> Path:
    return Path("/sys/fs/cgroup", environ["CORRAL_CGROUP_PARENT"].lstrip("/"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def until_running(job: SubmittedJob) -> None:
    with anyio.fail_after(120):
        while await job.status() is not JobStatus.RUNNING:
            await anyio.sleep(0.02)


async def until_started(environ: Mapping[str, str], count: int = 1) -> None:
    """Return once so many programs have started, or sandboxes wait: see the fixture ``_cold``."""
    with anyio.fail_after(120):
        while len(running_programs(Path(environ["CORRAL_STATE_DIR"]))) < count:
            await anyio.sleep(0.01)
