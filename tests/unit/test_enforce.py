"""The limits that no kernel holds, whatever else of the host stands still."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import anyio
import pytest
from support.stops import asked
from support.threads import none_left

from corral import EffectiveLimits
from corral_worker.sandbox import enforce as module
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.enforce import enforce, enforcing
from corral_worker.sandbox.stop import Stop

SOON_S = 20.0
NOTHING = Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)
NOWHERE = ControlSocket(Path("/nowhere"))


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)


async def test_a_wall_limit_holds_though_the_counters_cannot_be_read() -> None:
    stop, answers, reads = Stop(), threading.Event(), 0

    def hangs() -> Counters:
        nonlocal reads
        reads += 1
        assert answers.wait(SOON_S)
        return NOTHING

    async with anyio.create_task_group() as tasks:
        limits = EffectiveLimits(wall_s=0.1)
        with enforcing(limits, hangs, NOWHERE, stop, tasks, since=time.monotonic()):
            try:
                with anyio.fail_after(SOON_S):
                    await asked(stop)
            finally:
                answers.set()

    assert stop.cause == "wall_timeout"
    assert reads <= 1


async def test_limits_hold_though_all_threads_wait_for_a_disk() -> None:
    stop, limits = Stop(), EffectiveLimits(wall_s=3600, cpu_time_s=0.001)

    def used_up() -> Counters:
        return Counters(cpu_s=1, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)

    async with none_left():
        with anyio.fail_after(SOON_S):
            await enforce(limits, used_up, NOWHERE, stop, since=time.monotonic())

    assert stop.cause == "cpu_timeout"


async def test_nobody_looks_any_more_once_somebody_has_asked_for_the_end() -> None:
    stop, limits = Stop(), EffectiveLimits(wall_s=3600, cpu_time_s=3600)

    def counters() -> Counters:
        anyio.from_thread.run_sync(stop.request, "cancelled")
        return NOTHING

    with anyio.fail_after(SOON_S):
        await enforce(limits, counters, NOWHERE, stop, since=time.monotonic())

    assert stop.cause == "cancelled"
