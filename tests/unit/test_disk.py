"""What a sandbox's files take together, and the end of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.abc
import pytest

from corral import EffectiveLimits
from corral_worker.sandbox import disk
from corral_worker.sandbox import enforce as enforcing
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.disk import SLACK_BYTES
from corral_worker.sandbox.enforce import enforce
from corral_worker.sandbox.stop import Stop

MIB = 1024**2
SOON_S = 20.0


def usage(tmpfs: int) -> bytes:
    result = {"Unknown": 0, "Anonymous": 7 * MIB, "Tmpfs": tmpfs, "Total": 7 * MIB + tmpfs}
    return json.dumps({"success": True, "err": "", "result": result}).encode()


class Sentry:
    """One that says what it is told to, in two pieces."""

    def __init__(self) -> None:
        self.answer = usage(0)
        self.asked: list[object] = []

    @asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[None]:
        async with (
            await anyio.create_unix_listener(socket) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._serve)
            yield
            tasks.cancel_scope.cancel()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            self.asked.append(json.loads(await stream.receive()))
            half = len(self.answer) // 2
            with suppress(anyio.BrokenResourceError):
                await stream.send(self.answer[:half])
                await stream.send(self.answer[half:])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "s"


class Sandbox:
    """One with so much memory, of which so much is files; it tells when somebody looked."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.looks = 0

    def counters(self) -> Counters:
        self.looks += 1
        return Counters(
            cpu_s=0,
            peak_memory_bytes=0,
            peak_tasks=None,
            oom_kills=0,
            memory_bytes=self.memory_bytes,
        )


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral_worker.sandbox.enforce._LOOK_S", 0.001)


async def enforce_disk(sandbox: Sandbox, socket: Path, stop: Stop) -> None:
    limits = EffectiveLimits(disk_bytes=10 * MIB, wall_s=3600, cpu_time_s=3600)
    await enforce(limits, sandbox.counters, ControlSocket(socket), stop, since=time.monotonic())


async def test_too_many_files_are_the_end(socket: Path) -> None:
    sentry, stop = Sentry(), Stop()
    sentry.answer = usage(10 * MIB + SLACK_BYTES + 1)

    async with sentry.listening(socket):
        with anyio.fail_after(SOON_S):
            await enforce_disk(Sandbox(50 * MIB), socket, stop)

    assert stop.cause == "disk_exceeded"


async def test_a_full_directory_and_a_last_note_in_another_are_not_the_end(socket: Path) -> None:
    sentry, stop = Sentry(), Stop()
    sentry.answer = usage(10 * MIB + SLACK_BYTES)

    async with sentry.listening(socket), anyio.create_task_group() as tasks:
        tasks.start_soon(enforce_disk, Sandbox(50 * MIB), socket, stop)
        with anyio.fail_after(SOON_S):
            while len(sentry.asked) < 3:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert stop.cause is None


async def test_nobody_is_asked_as_long_as_there_is_less_memory_than_files_may_take(
    socket: Path,
) -> None:
    sentry, stop, sandbox = Sentry(), Stop(), Sandbox(10 * MIB)

    async with sentry.listening(socket), anyio.create_task_group() as tasks:
        tasks.start_soon(enforce_disk, sandbox, socket, stop)
        with anyio.fail_after(SOON_S):
            while sandbox.looks < 5:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert (sentry.asked, stop.cause) == ([], None)


async def test_a_sandbox_whose_files_cannot_be_counted_is_ended_as_our_fault(socket: Path) -> None:
    sentry, stop = Sentry(), Stop()
    sentry.answer = b'{"success": false, "err": "rpc: cannot find method", "result": null}'

    async with sentry.listening(socket):
        with anyio.fail_after(SOON_S):
            await enforce_disk(Sandbox(50 * MIB), socket, stop)

    assert stop.cause == "unenforceable"


async def test_a_sandbox_that_does_not_answer_is_asked_again(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_ANSWER_WITHIN_S", 0.01)
    sandbox, stop = Sandbox(50 * MIB), Stop()

    async def looked(times: int) -> None:
        until = sandbox.looks + times
        with anyio.fail_after(SOON_S):
            while sandbox.looks < until:
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enforce_disk, sandbox, socket, stop)
        await looked(2)  # nobody listens
        async with await anyio.create_unix_listener(socket):
            await looked(2)  # nobody answers
        await anyio.Path(socket).unlink(missing_ok=True)
        sentry = Sentry()
        sentry.answer = b""
        async with sentry.listening(socket):
            await looked(2)  # it hangs up
        tasks.cancel_scope.cancel()

    assert stop.cause is None


async def test_a_sandbox_that_does_not_answer_delays_no_other_limit(socket: Path) -> None:
    stop = Stop()
    limits = EffectiveLimits(disk_bytes=10 * MIB, wall_s=0.05)

    async with await anyio.create_unix_listener(socket):
        with anyio.fail_after(SOON_S):
            await enforce(
                limits,
                Sandbox(50 * MIB).counters,
                ControlSocket(socket),
                stop,
                since=time.monotonic(),
            )

    assert stop.cause == "wall_timeout"


@pytest.mark.parametrize(
    ("memory_bytes", "pauses"),
    [(4 * MIB, [1, 2, 4, 5, 5]), (6 * MIB, [1, 1, 1, 1, 1])],
)
async def test_a_program_with_little_memory_is_looked_at_more_seldom(
    memory_bytes: int, pauses: list[int], socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    stop = Stop()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == len(pauses):
            stop.request("cancelled")

    monkeypatch.setattr(enforcing, "_LOOK_S", 1.0)
    monkeypatch.setattr(enforcing, "_SELDOM_S", 5.0)
    scope = anyio.CancelScope
    monkeypatch.setattr(enforcing, "anyio", SimpleNamespace(sleep=sleep, CancelScope=scope))

    await enforce_disk(Sandbox(memory_bytes), socket, stop)

    assert [round(seconds) for seconds in slept] == pauses
