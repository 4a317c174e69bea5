"""What is left of a worker that is killed, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.host_traces import mentions
from support.on_host import stands
from support.workers import (
    HELLO,
    SLEEPER,
    left_behind,
    running_programs,
    sandbox_cgroups,
    started_worker,
    until_started,
)

from corral import Client, Job, JobStatus, Limits, Outcome
from corral_worker.sandbox.cgroup import pids_below, remove_below
from corral_worker.sandbox.cgroup_processes import heads, signal_all

pytestmark = pytest.mark.live


@asynccontextmanager
async def _cgroups_removed(environ: Mapping[str, str]) -> AsyncIterator[None]:
    """Remove what a killed worker leaves, and kill what it should not have left."""
    try:
        yield
    finally:
        for cgroup in sandbox_cgroups(environ):
            signal_all(pids_below(cgroup))
        with anyio.move_on_after(5):
            while any(map(pids_below, sandbox_cgroups(environ))):
                await anyio.sleep(0.01)
        for cgroup in sandbox_cgroups(environ):
            remove_below(cgroup)


@pytest.mark.usefixtures("_cold")
async def test_a_worker_that_is_killed_takes_its_sandboxes_along(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    async with _cgroups_removed(environ), started_worker(environ) as worker:
        await client.submit(SLEEPER)
        await until_started(environ)
        held = {pid for cgroup in sandbox_cgroups(environ) for pid in pids_below(cgroup)}

        worker.process.kill()
        with anyio.fail_after(120):
            while mentions(str(state_dir)) or any(map(pids_below, sandbox_cgroups(environ))):
                await anyio.sleep(0.01)

    assert len(held) > 1


async def test_a_worker_that_is_killed_takes_along_what_waits_for_a_job(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    async with _cgroups_removed(environ), started_worker(environ) as worker:
        starts: list[str] = []
        with anyio.fail_after(120):
            while "warm" not in starts:
                result = await (await client.submit(HELLO)).result(timeout=60)
                assert result.provenance
                starts.append(result.provenance.start)
                await anyio.sleep(0.5)
            while not running_programs(state_dir):
                await anyio.sleep(0.01)

        worker.process.kill()
        with anyio.fail_after(120):
            while mentions(str(state_dir)) or any(map(pids_below, sandbox_cgroups(environ))):
                await anyio.sleep(0.01)


async def test_a_worker_that_is_killed_takes_along_what_stands_still_while_it_waits(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    environ["CORRAL_WARM_SANDBOXES"] = "3"

    def standing() -> set[int]:
        pids = {pid for cgroup in sandbox_cgroups(environ) for pid in pids_below(cgroup)}
        return {pid for pid in heads(pids) if stands(pid)}

    async with _cgroups_removed(environ), started_worker(environ) as worker:
        for submitted in [await client.submit(HELLO) for _ in range(3)]:
            await submitted.result(timeout=60)
        with anyio.fail_after(120):
            while len(standing()) != 2:
                await anyio.sleep(0.01)

        worker.process.kill()
        with anyio.fail_after(120):
            while mentions(str(state_dir)) or any(map(pids_below, sandbox_cgroups(environ))):
                await anyio.sleep(0.01)


@pytest.mark.usefixtures("_cold")
async def test_a_worker_that_starts_again_removes_what_it_left_when_it_was_killed_and_only_that(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    elsewhere = state_dir / "neighbour"
    elsewhere.mkdir()
    # However slow the machine, nothing else is to end the jobs.
    environ["CORRAL_LEASE_S"] = "300"
    endless = Job(
        argv=("sh", "-c", "sleep 1000"), image="base", limits=Limits(wall_s=300, cpu_time_s=300)
    )
    # Of the same host and the same cgroups; it is not to be the one that cleans up.
    neighbours = {
        **environ,
        "CORRAL_STATE_DIR": str(elsewhere),
        "CORRAL_SLOTS": "1",
        "CORRAL_REAP_EVERY_S": "3600",
    }
    async with _cgroups_removed(environ):
        async with started_worker(neighbours) as neighbour:
            theirs = await client.submit(endless)
            await until_started(neighbours)
            async with started_worker(environ) as worker:
                for _ in range(2):
                    await client.submit(endless)
                await until_started(environ, 2)
                worker.process.kill()
                await anyio.to_thread.run_sync(worker.process.wait)
            (left,) = _directories(state_dir)
            mark = left.name.removeprefix("w-")
            assert _cgroups_of(mark, environ)

            async with started_worker(environ) as again:
                (found,) = (
                    entry for entry in again.events() if entry["event"] == "reaper.cleaned_up"
                )
                assert (found["cgroup"], found["bundle"], found["directory"]) == (2, 2, 1)
                assert not left.exists()
                assert _cgroups_of(mark, environ) == []
                assert await theirs.status() is JobStatus.RUNNING
                assert await theirs.cancel(timeout=30)
                assert (await theirs.result()).outcome is Outcome.CANCELLED
                assert await again.stopped() == 0
            assert await neighbour.stopped() == 0
        assert left_behind(environ) == left_behind(neighbours) == []


def _directories(state_dir: Path) -> list[Path]:
    return list(state_dir.glob("w-*"))


def _cgroups_of(mark: str, environ: Mapping[str, str]) -> list[Path]:
    parent = environ["CORRAL_CGROUP_PARENT"].lstrip("/")
    places = Path("/sys/fs/cgroup")
    return [*places.glob(f"*/{parent}/corral-{mark}*"), *places.glob(f"{parent}/corral-{mark}*")]
