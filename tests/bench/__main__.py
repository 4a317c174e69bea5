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
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import msgspec
from bench import bench_kill, burden
from bench.bare import LANES, Bare
from bench.bindings import Bindings
from bench.figures import ALWAYS, Figures, table
from bench.ground import Ground, ground
from bench.latency import Latency
from bench.processors import Processors
from bench.throughput import Throughput

_QUICK = ("latency", "throughput")
_SECTIONS = (*_QUICK, "ends", "output", "many", "crowd")
_KILLS = 20


async def measure(
    on: Ground, figures: Figures, sections: Sequence[str], *, quick: bool, with_bindings: bool
) -> None:
    """Measure the sections named, one after the other, and add their figures.

    One that fails is told of, and the others are measured all the same. Cancelled, it adds what
    was measured until then.
    """
    bares = {"bare_dir": Bare(on, "dir"), "bare_erofs": Bare(on, "erofs")}
    for bare in bares.values():
        await bare.prepare()
    bindings = Bindings(on)
    with ExitStack() as stack:
        if with_bindings:
            await bindings.install(stack)
        latency = Latency(on, bares, bindings)
        throughput = Throughput(on, bares, bindings)
        ways = {
            "latency": lambda: latency.measure(rounds=3 if quick else 30),
            "throughput": lambda: throughput.measure(
                concurrencies=(LANES,) if quick else (LANES // 2, LANES),
                turns=1 if quick else 5,
                turn_s=1 if quick else 5,
            ),
            "ends": lambda: bench_kill.measure(_KILLS, figures),
            "output": lambda: burden.output(on, bares, figures, runs=3),
            "many": lambda: burden.many(on, figures),
            "crowd": lambda: burden.crowd(on, figures),
        }
        try:
            for section in sections:
                try:
                    await ways[section]()
                except Exception as error:  # noqa: BLE001 - whatever it is, others may go well
                    traceback.print_exc()
                    figures[f"{section}_failed"] = f"{type(error).__name__}: {error}"
        finally:
            if "latency" in sections:
                figures |= latency.figures()
            if "throughput" in sections:
                figures |= throughput.figures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="latency and throughput, fewer runs")
    parser.add_argument("--bindings", action="store_true", help="Google's, too: installs them")
    parser.add_argument("--only", action="append", choices=_SECTIONS, help="may be repeated")
    parser.add_argument("--json", type=Path, default=Path("build/bench/sandbox.json"))
    options = parser.parse_args()
    sections = options.only or (_QUICK if options.quick else _SECTIONS)
    # Whoever stops this wants it cleaned up, however it is said.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    began = Processors.now()
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
        since = Processors.now().since(began)
        figures["took_s"] = round(since.at_s, 1)
        figures["stolen_percent"] = round(since.stolen_percent(), 1)
        figures |= {name: None for name in ALWAYS if name not in figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        written = msgspec.json.format(msgspec.json.encode(figures), indent=2)
        options.json.write_bytes(written + b"\n")
    for line in table(figures):
        sys.stdout.write(line + "\n")
    if any(name.endswith("_failed") for name in figures):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
