"""Measures how soon a real sandbox is dead: after a cancel, and after its wall limit.

Usage: PYTHONPATH=tests python -m bench.bench_kill [--runs N] [--json FILE]
Needs root, runsc and the image ``base``. Runs one sandbox at a time, the kinds in turn.
Prints a table and writes a flat JSON object.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
from bench.figures import Figures, table

from corral import EffectiveLimits, Job
from corral_worker.images.store import ImageStore
from corral_worker.process.reaping import reaping
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.runsc import Runsc, find
from corral_worker.sandbox.stop import Stop
from corral_worker.secret import Secret
from corral_worker.settings import Settings

WALL_S = 0.5
PROGRAMS = {
    "sleep": "sleep 1000",
    "busy": "while :; do :; done",
    "fork": "for i in $(seq 50); do sleep 1000 & done; wait",
}


class Bench:
    """Ends sandboxes and keeps the times, in seconds."""

    def __init__(self, sandboxes: ColdStart, runsc: Runsc, rootfs: Path) -> None:
        self._sandboxes = sandboxes
        self._runsc = runsc
        self._rootfs = rootfs
        self.times: dict[str, list[float]] = {}
        self.survivors = 0
        self.runs = 0

    def figures(self) -> Figures:
        """Return the percentiles of all times until now, in milliseconds."""
        figures: Figures = {
            f"{figure}_p{round(100 * share)}_ms": round(1000 * percentile(times, share), 1)
            for figure, times in self.times.items()
            for share in (0.5, 0.99)
        }
        return {**figures, "not_seen_dead": self.survivors, "runs": self.runs}

    async def cancel(self, name: str) -> None:
        """Cancel a program some time after its start."""
        stop = Stop()
        reports: list[Report] = []

        async def run() -> None:
            reports.append(await self._run(name, 60, stop))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not self._running():
                await anyio.sleep(0.005)
            await anyio.sleep(WALL_S)
            stop.request("cancelled")
        self._note(f"cancel_{name}", reports[0], stop)

    async def overrun(self, name: str) -> None:
        """Let a program reach its wall limit."""
        stop = Stop()
        report = await self._run(name, WALL_S, stop)
        self._note(f"timeout_{name}", report, stop)
        # The decision itself may come late, too.
        self._keep(f"timeout_{name}_overshoot", report.run_s - WALL_S)

    async def _run(self, name: str, wall_s: float, stop: Stop) -> Report:
        job = Job(argv=("/bin/sh", "-c", PROGRAMS[name]))
        return await self._sandboxes.run(job, EffectiveLimits(wall_s=wall_s), self._rootfs, stop)

    def _running(self) -> bool:
        names = (file.name.partition("_sandbox:")[0] for file in self._runsc.root.glob("*.state"))
        return any(self._runsc.state(name).status() == "running" for name in names)

    def _note(self, kind: str, report: Report, stop: Stop) -> None:
        now = time.monotonic()
        if report.termination is None or not report.termination.verified_dead:
            self.survivors += 1
            return
        self._keep(f"{kind}_dead", report.termination.latency_s)
        self._keep(f"{kind}_gone", now - stop.requested_at)

    def _keep(self, figure: str, seconds: float) -> None:
        self.times.setdefault(figure, []).append(seconds)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def measure(runs: int, figures: Figures) -> None:
    """Add what so many runs show; if it raises, what those before have shown."""
    settings = Settings(redis_url=Secret(""))
    rootfs = (await ImageStore(settings.images).resolve("base")).rootfs
    cgroups = CgroupHost.of_this_host(f"/corral-bench-{os.getpid()}")
    cgroups.prepare()
    try:
        # Deep directories are too long for the path of runsc's socket.
        with tempfile.TemporaryDirectory(prefix="corral-bench-") as name:
            directory = Path(name)
            (directory / "r").mkdir()
            (directory / "b").mkdir()
            runsc = Runsc(
                binary=find(settings.runsc_path),
                root=directory / "r",
                platform=settings.platform,
            )
            sandboxes = ColdStart(
                runsc=runsc,
                cgroups=cgroups,
                runs=directory / "b",
                holdings=Holdings("0a1b2c3d"),
                start_timeout_s=60,
            )
            bench = Bench(sandboxes, runsc, rootfs)
            try:
                async with reaping():
                    for _ in range(runs):
                        for program in PROGRAMS:
                            await bench.cancel(program)
                            await bench.overrun(program)
                        bench.runs += 1
            finally:
                figures |= bench.figures()
    finally:
        cgroups.release()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path("build/bench/kill.json"))
    options = parser.parse_args()
    figures: Figures = {}
    try:
        anyio.run(measure, options.runs, figures)
    finally:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    for line in table(figures):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
