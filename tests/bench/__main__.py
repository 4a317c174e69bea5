"""Measures corral beside what it could be replaced with, on this machine.

Usage: PYTHONPATH=tests python -m bench [--quick] [--only SECTION]... [--json FILE]
Needs root, runsc, redis-server and the images base and python. Other work on the machine
strikes all that is compared alike: trust the ratios. Prints a table and writes a flat JSON
object; a figure that could not be measured is null.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import msgspec
from bench import bench_kill, burden
from bench.bare import Bare
from bench.bindings import Bindings
from bench.figures import Figures, table
from bench.ground import Ground, ground
from bench.latency import Latency
from bench.throughput import Throughput

_QUICK = ("latency", "throughput")
_SECTIONS = (*_QUICK, "ends", "output", "many", "crowd")
_KILLS = 20


async def measure(
    on: Ground, figures: Figures, sections: Sequence[str], *, quick: bool, with_bindings: bool
) -> None:
    """Measure the sections named, and add their figures."""
    bares = {"bare_dir": Bare(on, "dir"), "bare_erofs": Bare(on, "erofs")}
    for bare in bares.values():
        await bare.prepare()
    bindings = Bindings(on)
    with ExitStack() as stack:
        if with_bindings:
            await bindings.install(stack)
        if "latency" in sections:
            figures |= await Latency(bindings).measure(
                on, bares, rounds=5 if quick else 30, at_most_s=15 if quick else 600
            )
        if "throughput" in sections:
            figures |= await Throughput(bindings).measure(
                on,
                bares,
                concurrencies=(2, 4) if quick else (2, 4, 8),
                turns=1 if quick else 5,
                turn_s=1.5 if quick else 3,
            )
        if "ends" in sections:
            figures |= await bench_kill.measure(_KILLS)
        if "output" in sections:
            figures |= await burden.output(on, bares, runs=3)
        if "many" in sections:
            figures |= await burden.many(on)
        if "crowd" in sections:
            figures |= await burden.crowd(on)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="latency and throughput, fewer runs")
    parser.add_argument("--bindings", action="store_true", help="Google's, too (experimental)")
    parser.add_argument("--only", action="append", choices=_SECTIONS, help="may be repeated")
    parser.add_argument("--json", type=Path, default=Path("build/bench/sandbox.json"))
    options = parser.parse_args()
    sections = options.only or (_QUICK if options.quick else _SECTIONS)
    # Whoever stops this wants it cleaned up, however it is said.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    began = time.monotonic()
    figures: Figures = {"load_before": round(os.getloadavg()[0], 1), "processors": os.cpu_count()}
    try:
        with ground() as on:
            anyio.run(
                lambda: measure(
                    on, figures, sections, quick=options.quick, with_bindings=options.bindings
                )
            )
    finally:
        # What was measured before something failed took its time, too.
        figures["took_s"] = round(time.monotonic() - began, 1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        written = msgspec.json.format(msgspec.json.encode(figures), indent=2)
        options.json.write_bytes(written + b"\n")
    for line in table(figures):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
