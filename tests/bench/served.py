"""A corral worker as an operator runs it, with a Redis of its own and a client."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from bench.bare import IMAGES
from bench.ground import Ground
from bench.processors import spent_by

from corral import Client, Job, Result

_READY_WITHIN_S = 120.0
_ENDED_WITHIN_S = 300.0
_CLOSED_WITHIN_S = 5.0
_FILLED_WITHIN_S = 15.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is to be set."""

    slots: int
    warm: int
    """How many sandboxes may wait; 0 switches the pool off."""
    environ: dict[str, str] = {}


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time, in seconds."""

    worker: float
    redis: float
    runsc: float
    """Of the worker's children, with all that they have waited for: the sandboxes."""

    @classmethod
    def by(cls, worker: int, redis: int) -> Spent:
        """Return what two processes have spent until now."""
        own, children = spent_by(worker)
        return cls(worker=own, redis=spent_by(redis)[0], runsc=children)

    def since(self, before: Spent) -> Spent:
        return Spent(
            worker=self.worker - before.worker,
            redis=self.redis - before.redis,
            runsc=self.runsc - before.runsc,
        )


class Served:
    """A worker that starts at once; enter :meth:`ready` before anything else."""

    client: Client

    def __init__(self, ground: Ground, name: str, plan: Plan) -> None:
        directory = ground.directory / name
        self.plan = plan
        self._state = directory / "s"
        self._state.mkdir(parents=True)
        self._log = directory / "worker.log"
        self.redis, self._url = ground.start_redis(directory)
        environ = {
            "PATH": os.environ["PATH"],
            "CORRAL_REDIS_URL": self._url,
            "CORRAL_STATE_DIR": str(self._state),
            "CORRAL_IMAGE_DIR": str(IMAGES),
            "CORRAL_CGROUP_PARENT": ground.parent,
            "CORRAL_LOG_FORMAT": "json",
            "CORRAL_SLOTS": str(plan.slots),
            "CORRAL_WARM_SANDBOXES": str(plan.warm),
            **plan.environ,
        }
        command = [sys.executable, "-m", "corral_worker", "worker"]
        self.worker = ground.start(command, self._log, environ)

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        """Wait until the worker takes jobs, and have a client in the block."""
        with anyio.fail_after(_READY_WITHIN_S):
            while b'"worker.ready"' not in self._log.read_bytes():
                if self.worker.poll() is not None:
                    raise RuntimeError(self._log.read_text()[-2000:])
                await anyio.sleep(0.02)
        self.client = Client(self._url)
        try:
            yield
        finally:
            with anyio.move_on_after(_CLOSED_WITHIN_S, shield=True):
                await self.client.aclose()

    async def run(self, job: Job) -> Result:
        """Submit a job and return its result."""
        submitted = await self.client.submit(job, tenant="bench")
        return await submitted.result(timeout=_ENDED_WITHIN_S)

    async def exercise(self, job: Job) -> None:
        """Have as many jobs run at one time as can, so that none later is the worker's first."""
        async with anyio.create_task_group() as tasks:
            # As many sandboxes wait as jobs came of late, if no more than may.
            for _ in range(max(self.plan.slots, self.plan.warm)):
                tasks.start_soon(self.run, job)

    async def filled(self) -> bool:
        """Wait until as many sandboxes wait as may, while no job runs; false if that takes long."""
        with anyio.move_on_after(_FILLED_WITHIN_S):
            while self.sandboxes() < self.plan.warm:
                await anyio.sleep(0.02)
            return True
        return False

    def sandboxes(self) -> int:
        """Return how many sandboxes run now, with or without a job."""
        return sum(
            b'"status":"running"' in _read(file) for file in self._state.glob("w-*/r/*.state")
        )

    def spent(self) -> Spent:
        """Return the processor time spent until now."""
        return Spent.by(self.worker.pid, self.redis.pid)

    def memory_mb(self) -> float:
        """Return the worker's memory now, in units of 1024 * 1024 bytes."""
        return self._memory("VmRSS")

    def peak_memory_mb(self) -> float:
        """Return the most memory the worker has had since :meth:`forget_peak`."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        """Begin to watch the worker's memory anew."""
        # proc(5): "5" resets the peak resident set size.
        Path(f"/proc/{self.worker.pid}/clear_refs").write_text("5")

    def sandbox_memory_mb(self) -> float:
        """Return the memory of all sandboxes and their runsc, what they share counted once."""
        root = f"{self._state}/w-".encode()
        total = 0
        for process in Path("/proc").glob("[0-9]*"):
            if root in _read(process / "cmdline"):
                for line in _read(process / "smaps_rollup").splitlines():
                    if line.startswith(b"Pss:"):
                        total += int(line.split()[1])
        return total / 1024

    def _memory(self, field: str) -> float:
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(field)]
        return int(line.split()[1]) / 1024


@asynccontextmanager
async def serving(ground: Ground, plans: Mapping[str, Plan]) -> AsyncIterator[dict[str, Served]]:
    """Run workers for the block, by the names of their plans."""
    async with AsyncExitStack() as stack:
        served: dict[str, Served] = {}
        for name, plan in plans.items():
            one = served[name] = Served(ground, name, plan)
        stack.push_async_callback(ground.stop, [one.redis for one in served.values()])
        stack.push_async_callback(ground.stop, [one.worker for one in served.values()])
        for one in served.values():
            await stack.enter_async_context(one.ready())
        yield served


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
