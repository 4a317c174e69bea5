"""Which way programs start in sandboxes that wait, where gVisor's control socket fails.

What programs then see and how they end is no different: whatever uses ``sandboxes`` or ``prepare``
is run by every way.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
import pytest
from structlog.testing import capture_logs
from support.host_traces import mentions
from support.waiting import LIMITS, READY_WITHIN_S, Prepare, ready, warm

from corral import Job, Outcome
from corral.result import StartWay
from corral_worker.admission.gate import Gate
from corral_worker.pool import prepared as prepared_module
from corral_worker.pool.pool import Budget, Pool
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.pool.ways import BEST_FIRST, Ways
from corral_worker.reaper.reaper import Reaper
from corral_worker.reaper.trace import names_in
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.containers import Containers
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

Answer = Literal["refuses", "lies", "talks nonsense", "hangs up", "says nothing"]
ANSWERS: tuple[Answer, ...] = ("refuses", "lies", "talks nonsense", "hangs up", "says nothing")


class Stranger:
    """Answers in a sentry's place, as one of another gVisor might."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self._answer = answer
        self.asked = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with (
            await anyio.create_unix_listener(self.path) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._serve)
            yield
            tasks.cancel_scope.cancel()
        self.path.unlink()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.asked += 1
        async with stream:
            await stream.receive()
            match self._answer:
                case "refuses":
                    await stream.send(b'{"success":false,"err":"unknown method","result":null}')
                case "lies":
                    await stream.send(b'{"success":true,"err":"","result":0}')
                case "talks nonsense":
                    await stream.send(b'{"jsonrpc":"2.0"}')
                case "hangs up":
                    return
                case "says nothing":
                    await anyio.sleep_forever()


class Mixed(Ways):
    """Takes a stranger for the sandbox's control socket, and may have no other way."""

    def __init__(self, runsc: Runsc, stranger: Stranger, *, is_alone: bool = False) -> None:
        super().__init__(runsc)
        self._stranger = stranger
        self._is_alone = is_alone
        self.opened: list[StartWay] = []

    def open(
        self, way: StartWay, sandbox: str, directory: Path
    ) -> AbstractAsyncContextManager[Containers]:
        self.opened.append(way)
        if way == "control_socket" or self._is_alone:
            return nullcontext(ControlSocket(self._stranger.path))
        return super().open(way, sandbox, directory)


@pytest.fixture
async def stranger(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Stranger]:
    made = Stranger(directory / "stranger.sock", getattr(request, "param", "refuses"))
    async with made.listening():
        yield made


def preparing(ways: Ways, runsc: Runsc, cold: ColdStart, pause: Path) -> Prepare:
    def made(shape: Shape) -> Prepared:
        return Prepared(
            shape=shape,
            runsc=runsc,
            ways=ways,
            places=cold.place,
            pause=pause,
            start_timeout_s=READY_WITHIN_S,
        )

    return made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, slowness: float) -> None:
    """Give up early what never answers."""
    monkeypatch.setattr(prepared_module, "_CALL_WITHIN_S", 3 * slowness)


@pytest.mark.parametrize("stranger", ANSWERS, indirect=True)
async def test_where_the_control_socket_fails_programs_start_by_the_command_line(
    stranger: Stranger, runsc: Runsc, cold: ColdStart, pause: Path, rootfs: Path
) -> None:
    ways = Mixed(runsc, stranger)
    prepare = preparing(ways, runsc, cold, pause)
    job = Job(argv=("echo", "hello"))

    with capture_logs() as logs:
        first = await warm(prepare, job, rootfs)
        asked = stranger.asked
        second = await warm(prepare, job, rootfs)

    assert [report.stdout.data for report in (first, second)] == [b"hello\n"] * 2
    assert [report.start_way for report in (first, second)] == ["command_line"] * 2
    # It is found out once, and told once.
    assert ways.opened == ["control_socket", "command_line", "command_line"]
    assert stranger.asked == asked > 0
    assert [line["event"] for line in logs] == ["pool.slower_way"]


async def test_where_the_control_socket_works_nothing_else_is_tried(
    runsc: Runsc, cold: ColdStart, pause: Path, rootfs: Path
) -> None:
    ways = Ways(runsc)
    with capture_logs() as logs:
        report = await warm(preparing(ways, runsc, cold, pause), Job(argv=("true",)), rootfs)

    assert (report.start, report.start_way) == ("warm", "control_socket")
    assert list(ways.to_try()) == ["control_socket"]
    assert logs == []


async def test_where_neither_way_works_jobs_start_cold_and_the_log_says_why(
    stranger: Stranger, runsc: Runsc, cold: ColdStart, pause: Path, rootfs: Path
) -> None:
    ways = Mixed(runsc, stranger, is_alone=True)
    with capture_logs() as logs:
        async with Pool.open(
            cold=cold,
            prepare=preparing(ways, runsc, cold, pause),
            runsc=runsc,
            budget=Budget(sandboxes=1, slots=100),
            gate=Gate(),
            expected=LIMITS,
        ) as pool:
            with anyio.fail_after(READY_WITHIN_S):
                while not logs:
                    await anyio.sleep(0.01)
            report = await pool.run(Job(argv=("true",)), LIMITS, rootfs, Stop())

    assert (report.start, report.start_way) == ("cold", "command_line")
    assert report.ending == Ending(outcome=Outcome.EXITED, exit_code=0)
    (line,) = logs
    assert line["event"] == "pool.not_prepared"
    assert "by control_socket: " in line["detail"]
    assert "by command_line: " in line["detail"]
    # Nothing was seen to work: the next one is tried by all.
    assert list(ways.to_try()) == list(BEST_FIRST)


async def test_a_sandbox_that_does_not_boot_says_nothing_about_the_ways(
    stranger: Stranger, runsc: Runsc, cold: ColdStart, directory: Path
) -> None:
    ways = Mixed(runsc, stranger)

    async def never_ready() -> None:
        async with ready(preparing(ways, runsc, cold, directory / "none.erofs")):
            raise AssertionError

    with pytest.RaisesGroup(NotPreparedError, flatten_subgroups=True):
        await never_ready()

    assert ways.opened == ["control_socket"]
    assert stranger.asked == 0


WORKER = """
import sys
from pathlib import Path

import anyio

from corral import EffectiveLimits, Job
from corral_worker.pool.prepared import Prepared, Shape
from corral_worker.reaper.claim import Claim
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop
from support.host_traces import mentions
from support.waiting import OnlyWay

state_dir, parent, rootfs, pause, binary = sys.argv[1:]
cgroups = CgroupHost.of_this_host(parent)
claim = Claim.make(Path(state_dir), cgroups)
runsc = Runsc(binary=Path(binary), root=claim.runsc_root, platform="systrap")
cold = ColdStart(
    runsc=runsc,
    cgroups=cgroups,
    runs=claim.runs,
    holdings=Holdings(claim.worker),
    start_timeout_s=60,
)
limits = EffectiveLimits(wall_s=500)
prepared = Prepared(
    shape=Shape.of(limits),
    runsc=runsc,
    ways=OnlyWay(runsc, "command_line"),
    places=cold.place,
    pause=Path(pause),
    start_timeout_s=60,
)


async def main():
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prepared.live, ready.set)
        await ready.wait()
        async with prepared.taken() as start:
            job = Job(argv=("sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"))
            await start.run(job, limits, Path(rootfs), Stop())


anyio.run(main)
"""


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        yield Path(name)


async def test_a_worker_that_is_killed_takes_along_what_it_started_by_the_command_line(
    runsc: Runsc, cgroups: CgroupHost, pause: Path, rootfs: Path, state_dir: Path
) -> None:
    arguments = [state_dir, cgroups.parent, rootfs, pause, runsc.binary]
    async with await anyio.open_process(
        [sys.executable, "-c", WORKER, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=None,
        stderr=None,
    ) as worker:
        with anyio.fail_after(READY_WITHIN_S):
            while not _runs_a_job(state_dir):
                await anyio.sleep(0.01)
        worker.kill()
        await worker.wait()
        with anyio.fail_after(READY_WITHIN_S):
            while mentions(str(state_dir)):
                await anyio.sleep(0.01)

    swept = await Reaper(state_dir=state_dir, cgroups=cgroups).reap()

    assert (swept.left, swept.complete) == ((), True)
    # The state and the lock of both containers, and the socket.
    assert swept.dead.state_file == 5
    assert (swept.dead.cgroup, swept.dead.bundle, swept.dead.directory) == (1, 1, 1)
    assert names_in(state_dir) == []


def _runs_a_job(state_dir: Path) -> bool:
    states = state_dir.glob("w-*/r/job_sandbox:*.state")
    return any(b'"status":"running"' in file.read_bytes() for file in states)
