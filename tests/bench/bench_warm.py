"""Measures how long one sandboxed program takes: bare runsc, a cold start, and a warm one.

Every round runs all of them, one after the other, so that whatever else the machine does
strikes all alike; what counts are the medians' ratios. Needs root and the images base and
python. ``--rounds`` says how many rounds; ``--json FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from corral import EffectiveLimits, Job
from corral_worker.images.store import ImageStore
from corral_worker.pool.pause import build_pause_image
from corral_worker.pool.prepared import Prepared, Shape
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import Runsc, find
from corral_worker.sandbox.stop import Stop

IMAGES = Path(os.environ.get("CORRAL_TEST_IMAGES", "/var/lib/corral/images"))
LIMITS = EffectiveLimits(wall_s=60)
PROGRAMS = {
    "true": ("base", Job(argv=("true",))),
    "python": ("python", Job(argv=("python3", "-c", "print(1)"))),
}
SETTLE_S = 0.3
"""A sandbox that waits has been idle for longer than this."""
NAMESPACES = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
"""Bare runsc is measured without limits, which would only slow it down."""
TARGETS = {"true": 0.12, "python": 0.30}

Way = Callable[[Path, Job], Awaitable[float]]


class Bench:
    """All ways to run one program, each of which returns the seconds it took."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runsc = Runsc(binary=find(None), root=directory / "r", platform="systrap")
        self._cgroups = CgroupHost.of_this_host(f"/corral-bench-{os.getpid()}")
        self._pause = directory / "pause.erofs"
        self._holdings = Holdings(secrets.token_hex(4))
        self._cold = ColdStart(
            runsc=self._runsc,
            cgroups=self._cgroups,
            runs=directory / "b",
            holdings=self._holdings,
            start_timeout_s=60,
        )

    async def prepare(self) -> None:
        """Make what the ways need."""
        for name in ("r", "b"):
            (self._directory / name).mkdir()
        self._cgroups.prepare()
        await build_pause_image(self._pause)

    def release(self) -> None:
        """Remove what is not below the directory."""
        self._cgroups.release()

    async def directory_way(self, rootfs: Path, job: Job) -> float:
        """``runsc run`` with the image's files in a directory, as everybody else does it."""
        tree = self._directory / rootfs.parent.name[:12]
        return await anyio.to_thread.run_sync(self._bare, rootfs, job, tree)

    async def erofs_way(self, rootfs: Path, job: Job) -> float:
        """``runsc run`` with the image itself."""
        return await anyio.to_thread.run_sync(self._bare, rootfs, job, None)

    async def cold_way(self, rootfs: Path, job: Job) -> float:
        """corral's cold start, from the call to its report."""
        began = time.monotonic()
        await self._cold.run(job, LIMITS, rootfs, Stop())
        return time.monotonic() - began

    async def warm_way(self, rootfs: Path, job: Job) -> float:
        """corral's warm start, from the call to its report."""
        prepared = Prepared(
            shape=Shape.of(LIMITS),
            runsc=self._runsc,
            places=self._cold.place,
            pause=self._pause,
            start_timeout_s=60,
        )
        ready = anyio.Event()
        times: list[float] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prepared.live, ready.set)
            await ready.wait()
            await anyio.sleep(SETTLE_S)
            times.append(time.monotonic())
            async with prepared.taken() as start:
                await start.run(job, LIMITS, rootfs, Stop())
            times.append(time.monotonic())
        return times[1] - times[0]

    def _bare(self, rootfs: Path, job: Job, tree: Path | None) -> float:
        with self._holdings.hold() as name:
            return self._bare_named(name, rootfs, job, tree)

    def _bare_named(self, name: str, rootfs: Path, job: Job, tree: Path | None) -> float:
        place = Place(name, self._directory / "b", self._cgroups)
        config = place.config(job, LIMITS, rootfs)
        config["linux"] = {"namespaces": NAMESPACES, "cgroupsPath": place.cgroup.runsc_path}
        if tree is not None:
            if not tree.exists():
                command = ["fsck.erofs", f"--extract={tree}", str(rootfs)]
                subprocess.run(command, check=True, capture_output=True)
            config |= {"root": {"path": str(tree), "readonly": True}, "annotations": {}}
        (place.bundle / "rootfs").mkdir(parents=True)
        (place.bundle / "config.json").write_bytes(msgspec.json.encode(config))
        flags = ["--platform=systrap", "--network=none", "--overlay2=none"]
        began = time.monotonic()
        subprocess.run(
            ["runsc", f"--root={self._runsc.root}", *flags, "run", "--bundle", place.bundle, "x"],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        took_s = time.monotonic() - began
        place.remove(within_s=3)
        return took_s


async def measure(rounds: int) -> dict[str, float]:
    """Return the medians in milliseconds, by ``<way>_<program>_p50_ms``."""
    directory = Path(tempfile.mkdtemp(prefix="corral-bench-"))
    bench = Bench(directory)
    ways: dict[str, Way] = {
        "bare_run": bench.directory_way,
        "bare_erofs": bench.erofs_way,
        "cold": bench.cold_way,
        "warm": bench.warm_way,
    }
    taken: dict[str, list[float]] = {}
    try:
        await bench.prepare()
        for _ in range(rounds + 1):
            for program, (image, job) in PROGRAMS.items():
                rootfs = (await ImageStore(IMAGES).resolve(image)).rootfs
                for way, run in ways.items():
                    took_s = await run(rootfs, job)
                    taken.setdefault(f"{way}_{program}_p50_ms", []).append(1000 * took_s)
    finally:
        bench.release()
        shutil.rmtree(directory)
    # The first round reads the images from disk.
    return {name: round(statistics.median(times[1:]), 1) for name, times in taken.items()}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = anyio.run(measure, options.rounds)
    for program, target in TARGETS.items():
        bare = figures[f"bare_run_{program}_p50_ms"]
        for way in ("bare_run", "bare_erofs", "cold", "warm"):
            took = figures[f"{way}_{program}_p50_ms"]
            sys.stdout.write(f"{program:7} {way:11} {took:7.1f} ms  {took / bare:5.2f}\n")
        sys.stdout.write(f"{program:7} target for warm ÷ bare_run: {target:.2f}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
