"""Measures what a cold job costs its worker at the least: its parts, without event loop and queue.

Usage: PYTHONPATH=tests python -m bench.bench_least [--jobs N] [--processes N]
Needs root, runsc and the image base. Each of some processes, as many as keep all processors busy,
runs `true` in one sandbox after the other, by calls that block: bundle and cgroup, fork and exec,
pipes and log, counters, removal. Prints the medians over the processes of the processor time of
each part, runsc's own not included, in milliseconds a job. What a worker takes beyond it is for
serving many jobs at one time, for limits and cancellation, and for Redis.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import anyio
from bench.ground import Ground, ground

from corral import EffectiveLimits, Job
from corral_worker.images.store import ImageStore
from corral_worker.process.call import PATH
from corral_worker.process.capture import Spool
from corral_worker.process.output import Pipe
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.holdings import Holdings
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.place import Place
from corral_worker.sandbox.runsc import find
from corral_worker.sandbox.timing import read_strain
from corral_worker.sandbox.verbs import Run

_IMAGES = Path("/var/lib/corral/images")
_LIMITS = EffectiveLimits()
_JOB = Job(argv=("true",))
_REMOVE_WITHIN_S = 3.0
_GULP_S = 0.25
_CHUNK = 256 * 1024
_WARM_UP = 2


class Parts:
    """Processor time of this process, by what it was spent on."""

    def __init__(self) -> None:
        self._last = time.process_time()
        self.spent_ms: dict[str, float] = defaultdict(float)

    def note(self, part: str) -> None:
        """Put down what was spent since the last call to a part."""
        now = time.process_time()
        self.spent_ms[part] += 1000 * (now - self._last)
        self._last = now


def once(place: Place, root: Path, rootfs: Path, parts: Parts) -> None:
    """Run one job."""
    place.make(_JOB, _LIMITS, rootfs)
    parts.note("bundle and cgroup")
    read_strain(time.monotonic())
    notes = Notes()
    with ExitStack() as files:
        out, err, log = (files.enter_context(Pipe(parent="read")) for _ in range(3))
        child = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", str(find(None)), f"--root={root}"),
                *("--platform=systrap", "--network=none", "--overlay2=none", "--directfs=false"),
                *("--cpu-num-from-quota", *place.logs.args(log.theirs)),
                *Run(id=place.id, bundle=place.bundle).args(),
            ],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=out.theirs,
            stderr=err.theirs,
            pass_fds=(log.theirs,),
            start_new_session=True,
        )
        end = os.pidfd_open(child.pid)
        files.callback(os.close, end)
        parts.note("pipes, fork and exec")
        for pipe in (out, err, log):
            pipe.close(pipe.theirs)
        poll = select.poll()
        for descriptor in (out.ours, err.ours, end):
            poll.register(descriptor, select.POLLIN)
        while end not in (found := {each for each, _ in poll.poll(1000 * _GULP_S)}):
            for pipe in (out, err):
                if pipe.ours in found and not os.read(pipe.ours, _CHUNK):
                    poll.unregister(pipe.ours)
        notes.feed(os.read(log.ours, _CHUNK))
        child.wait()
    parts.note("waiting and reading")
    place.log_book(notes)
    place.counters()
    place.cgroup.processes()
    read_strain(time.monotonic())
    parts.note("evidence")
    place.remove(within_s=_REMOVE_WITHIN_S)
    parts.note("removal")


def many(directory: Path, parent: str, rootfs: Path, number: int, jobs: int) -> dict[str, float]:
    """Run jobs in this process; return the milliseconds a job by part."""
    own = directory / f"least{number}"
    for name in ("b", "r"):
        (own / name).mkdir(parents=True)
    cgroups = CgroupHost.of_this_host(f"{parent}/least{number}")
    cgroups.prepare()
    holdings, writers = Holdings(f"{number:08x}"), Spool.new_writers()
    parts = Parts()
    for turn in range(jobs + _WARM_UP):
        if turn == _WARM_UP:
            parts = Parts()
        with holdings.hold() as name:
            once(Place(name, own / "b", cgroups, writers), own / "r", rootfs, parts)
    return {part: spent / jobs for part, spent in parts.spent_ms.items()}


def measure(on: Ground, processes: int, jobs: int) -> None:
    """Print the medians."""
    rootfs = anyio.run(ImageStore(_IMAGES).resolve, "base").rootfs
    with ProcessPoolExecutor(processes) as pool:
        running = [
            pool.submit(many, on.directory, on.parent, rootfs, number, jobs)
            for number in range(processes)
        ]
        found = [each.result() for each in running]
    total = 0.0
    for part in found[0]:
        middle = statistics.median(each[part] for each in found)
        total += middle
        sys.stdout.write(f"{part:22} {middle:6.2f} ms\n")
    sys.stdout.write(f"{'all of it':22} {total:6.2f} ms\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=25)
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    options = parser.parse_args()
    with ground() as on:
        measure(on, options.processes, options.jobs)


if __name__ == "__main__":
    main()
