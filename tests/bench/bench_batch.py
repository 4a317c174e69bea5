"""Measures what programs take in sandboxes that are scheduled as batch, beside usual ones.

Usage: PYTHONPATH=tests python -m bench.bench_batch [--rounds N]
Needs root, runsc and the images base and python. Runs programs in sandboxes that waited, and `true`
after a cold start, in turn with both policies, each in a sandbox of its own, one at a time. Prints
medians and quartiles of the time from a program's start to its end, and the processor time of
cold starts. runsc is a script here that sets the policy. See docs/adr/0015-sandboxes-are-batch.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import anyio
from bench.ground import Ground, ground

from corral import EffectiveLimits, Job
from corral_worker.images.store import ImageStore
from corral_worker.pool.pause import build_pause_image
from corral_worker.pool.prepared import NotPreparedError, Prepared, Shape
from corral_worker.pool.ways import Ways
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc, find
from corral_worker.sandbox.stop import Stop

LIMITS = EffectiveLimits()
PROGRAMS = {
    "true": Job(argv=("true",), image="base"),
    "print(1)": Job(argv=("python3", "-c", "print(1)"), image="python"),
}
POLICIES = {"usual": "--other", "batch": "--batch"}
_START_WITHIN_S = 60.0
_WAITED_S = 0.5
_IMAGES = Path("/var/lib/corral/images")


class Side:
    """Sandboxes of one policy."""

    def __init__(self, on: Ground, name: str) -> None:
        directory = on.directory / name
        runs, root = directory / "b", directory / "r"
        runs.mkdir(parents=True)
        root.mkdir()
        binary = directory / "runsc"
        binary.write_text(f'#!/bin/sh\nexec chrt {POLICIES[name]} 0 {find(None)} "$@"\n')
        binary.chmod(0o755)
        cgroups = CgroupHost.of_this_host(f"{on.parent}/{name}")
        cgroups.prepare()
        self._runsc = Runsc(binary=binary, root=root, platform="systrap")
        self._ways = Ways(self._runsc)
        self.cold = ColdStart(
            runsc=self._runsc,
            cgroups=cgroups,
            runs=runs,
            holdings=Holdings("0a1b2c3d"),
            start_timeout_s=_START_WITHIN_S,
        )

    async def warm(self, job: Job, rootfs: Path, pause: Path) -> Report:
        """Run a program in a sandbox that has waited."""
        prepared = Prepared(
            shape=Shape.of(LIMITS),
            runsc=self._runsc,
            ways=self._ways,
            places=self.cold.place,
            pause=pause,
            start_timeout_s=_START_WITHIN_S,
        )
        ready = anyio.Event()
        reports: list[Report] = []

        async def live() -> None:
            with suppress(NotPreparedError):
                await prepared.live(ready.set)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live)
            with anyio.fail_after(_START_WITHIN_S):
                await ready.wait()
            await anyio.sleep(_WAITED_S)
            async with prepared.taken() as start:
                reports.append(await start.run(job, LIMITS, rootfs, Stop()))
        return reports[0]


async def measure(on: Ground, rounds: int) -> None:
    """Print what was found."""
    sides = {name: Side(on, name) for name in POLICIES}
    pause = on.directory / "pause"
    await build_pause_image(pause)
    images = ImageStore(_IMAGES)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with reaping():
        for turn in range(rounds + 1):
            for name in sorted(sides, reverse=bool(turn % 2)):
                for program, job in PROGRAMS.items():
                    rootfs = (await images.resolve(job.image)).rootfs
                    report = await sides[name].warm(job, rootfs, pause)
                    found[f"{program}, ms", name].append(1000 * report.run_s)
                job = PROGRAMS["true"]
                rootfs = (await images.resolve(job.image)).rootfs
                report = await sides[name].cold.run(job, LIMITS, rootfs, Stop())
                found["cold true, ms", name].append(1000 * (report.start_s + report.run_s))
                found["cold true, cpu ms", name].append(1000 * report.counters.cpu_s)
    for (what, name), values in sorted(found.items()):
        first, middle, third = statistics.quantiles(values[1:], n=4)
        sys.stdout.write(f"{what:18} {name:6} {middle:6.1f} ({first:.0f} to {third:.0f})\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with ground() as on:
        anyio.run(measure, on, options.rounds)


if __name__ == "__main__":
    main()
