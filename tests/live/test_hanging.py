"""Whatever of a real sandbox hangs, its end is certified in bounded time, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs
from support.on_host import OnHost, running

from corral import EffectiveLimits, Job, Outcome
from corral.result import KillStep
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

SLEEPER = Job(argv=("/bin/sh", "-c", "sleep 1000"))
CANCELLED = Ending(outcome=Outcome.CANCELLED, signal=9)
USUAL: tuple[KillStep, ...] = ("runsc_kill", "cgroup_kill")
WITH_PROCESS_KILL: tuple[KillStep, ...] = (
    "runsc_kill",
    "cgroup_kill",
    "process_kill",
    "runsc_delete",
)
DEAD_WITHIN_S = 1.0
"""Far from what it takes, and far below what a runsc that hangs is given."""
WITHIN_S = 10.0
"""All rungs' deadlines together."""


async def _cancelled(
    sandboxes: ColdStart,
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    harm: Callable[[OnHost], None],
) -> Report:
    """Run a sleeper, do something to its sandbox, cancel it, and return the report."""
    stop = Stop()
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await sandboxes.run(SLEEPER, EffectiveLimits(wall_s=100), rootfs, stop))

    async with reaping(), anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        sandbox = await running(runsc, cgroups)
        harm(sandbox)
        began = time.monotonic()
        stop.request("cancelled")
    assert time.monotonic() - began < WITHIN_S
    (report,) = reports
    assert report.ending == CANCELLED
    assert report.leftovers == ()
    assert report.termination is not None
    assert report.termination.verified_dead
    return report


async def test_a_sentry_that_is_stopped_dies_as_any_other(
    cold: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, slowness: float
) -> None:
    report = await _cancelled(cold, runsc, cgroups, rootfs, OnHost.stop_sentry)

    assert report.termination is not None
    # On a slow machine it has to clean up, too, behind a runsc that has not come to it.
    assert report.termination.steps[: len(USUAL)] == USUAL
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness


async def test_a_runsc_run_that_is_stopped_is_killed_after_its_sandbox(
    cold: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, slowness: float
) -> None:
    report = await _cancelled(cold, runsc, cgroups, rootfs, OnHost.stop_runsc)

    assert report.termination is not None
    assert report.termination.steps == WITH_PROCESS_KILL
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness


async def test_a_sandbox_of_which_all_is_stopped_dies(
    cold: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, slowness: float
) -> None:
    report = await _cancelled(cold, runsc, cgroups, rootfs, OnHost.stop_all)

    assert report.termination is not None
    assert report.termination.steps == WITH_PROCESS_KILL
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness


@pytest.mark.parametrize(
    ("verb", "harm", "steps"),
    [
        ("kill", lambda _: None, USUAL),
        # One that ends its `run` properly leaves nothing to delete.
        ("delete", OnHost.stop_runsc, WITH_PROCESS_KILL),
    ],
    ids=["kill", "delete"],
)
async def test_a_runsc_that_hangs_delays_the_cleaning_up_and_not_the_death(
    runsc: Runsc,
    cgroups: CgroupHost,
    rootfs: Path,
    directory: Path,
    tmp_path: Path,
    slowness: float,
    verb: str,
    harm: Callable[[OnHost], None],
    steps: tuple[KillStep, ...],
) -> None:
    wrapper = tmp_path / "runsc"
    wrapper.write_text(
        f"""#!/bin/sh
for word in "$@"; do [ "$word" = {verb} ] && exec sleep 1000; done
exec {runsc.binary} "$@"
"""
    )
    wrapper.chmod(0o755)
    hanging = Runsc(binary=wrapper, root=runsc.root, platform=runsc.platform)
    sandboxes = ColdStart(
        runsc=hanging,
        cgroups=cgroups,
        runs=directory / "b",
        holdings=Holdings("0a1b2c3d"),
        start_timeout_s=20,
    )

    with capture_logs() as logs:
        report = await _cancelled(sandboxes, runsc, cgroups, rootfs, harm)

    assert report.termination is not None
    assert report.termination.steps == steps
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness
    assert {entry["event"] for entry in logs} == {"sandbox.rung_failed"}
    assert any(f"runsc {verb}" in entry["detail"] for entry in logs)


async def test_a_sandbox_that_is_frozen_dies(
    cold: ColdStart, runsc: Runsc, cgroups: CgroupHost, rootfs: Path, slowness: float
) -> None:
    freezer = Path("/sys/fs/cgroup/freezer")
    if cgroups.version != 1:
        pytest.skip("only version 1 has frozen processes that no signal reaches")
    states: list[Path] = []

    def freeze(sandbox: OnHost) -> None:
        states.append(freezer / sandbox.cgroup.runsc_path.lstrip("/") / "freezer.state")
        states[0].write_text("FROZEN")

    report = await _cancelled(cold, runsc, cgroups, rootfs, freeze)

    assert report.termination is not None
    assert report.termination.latency_s < DEAD_WITHIN_S * slowness
    assert not states[0].exists()
