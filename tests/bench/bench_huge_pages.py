"""Measures what a sandbox costs whose runsc lies in huge pages, beside one whose does not.

Usage: PYTHONPATH=tests python -m bench.bench_huge_pages [--rounds N]
Needs root, runsc and the image base. Runs `true` by bare `runsc run` on an EROFS root in turn with
both, and prints the medians of the processor time of all of runsc's processes, and of the time
it took. See docs/adr/0014-runsc-in-huge-pages.md.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import anyio
from bench.bare import Bare
from bench.ground import Ground, ground

from corral_worker.process.huge_pages import in_huge_pages
from corral_worker.sandbox.runsc import find

_WITHIN_S = 60.0


def once(command: list[str]) -> tuple[float, float]:
    """Run a command; return the milliseconds of processor time and those it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN_S
    )
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1000 * cpu, 1000 * took


async def measure(on: Ground, binary: Path, copy: Path, rounds: int) -> None:
    """Print the medians."""
    bare = Bare(on, "erofs")
    await bare.prepare()
    _, *arguments = bare.command("true", 0)
    found: dict[Path, list[tuple[float, float]]] = {binary: [], copy: []}
    names = (f"h{number}" for number in itertools.count())
    for turn in range(rounds + 1):
        for program in (binary, copy) if turn % 2 else (copy, binary):
            one = once([str(program), *arguments, next(names)])
            if turn:
                found[program].append(one)
    for label, program in (("its own file", binary), ("huge pages", copy)):
        cpu, took = (statistics.median(column) for column in zip(*found[program], strict=True))
        sys.stdout.write(f"{label:14} {cpu:6.1f} ms of processors {took:6.1f} ms\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    binary = find(None)
    with in_huge_pages(binary) as copy, ground() as on:
        if copy is None:
            sys.exit("this host gives no huge pages to programs")
        anyio.run(measure, on, binary, copy, options.rounds)


if __name__ == "__main__":
    main()
