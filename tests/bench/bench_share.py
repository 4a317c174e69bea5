"""Measures how long others wait for a processor while busy cgroups have little or much weight.

Usage: bench_share.py [--seconds N] [--turns N]
Needs root, and cgroups of version 1. Starts no sandbox: in each of three cgroups one process
computes and three sleep for half a millisecond at a time, as a sandbox does that computes. Beside
them one process of the host and one in a cgroup like theirs want a processor every 20 ms for next
to nothing; what is printed is the longest that they waited. See
docs/adr/0012-sandboxes-weigh-little.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SHARES = (2, 16, 102, 1024)
_BUSY = 3
_WAKERS = 3
_BURST_S = 2.0
_REST_S = 0.3
_NAP_S = 0.0005
_BEAT_S = 0.02


def compute(until: float) -> None:
    """Compute, with short rests."""
    while time.monotonic() < until:
        rest_at = time.monotonic() + _BURST_S
        while time.monotonic() < rest_at:
            pass
        time.sleep(_REST_S)


def nap(until: float) -> None:
    """Sleep, again and again."""
    while time.monotonic() < until:
        time.sleep(_NAP_S)


def beat(until: float, tell: int) -> None:
    """Write to a descriptor how much too late the latest of all wake-ups was, in seconds."""
    longest, last = 0.0, time.monotonic()
    while last < until:
        time.sleep(_BEAT_S)
        now = time.monotonic()
        longest, last = max(longest, now - last - _BEAT_S), now
    os.write(tell, str(longest).encode())


def start(cgroup: Path | None, task: Callable[[], None]) -> int:
    """Do something in a process of its own, and return its pid."""
    pid = os.fork()
    if pid == 0:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        task()
        os._exit(0)
    return pid


def longest_waits(parent: Path, shares: int, seconds: float) -> tuple[float, float]:
    """Return the longest wait of a process of the host, and of one in a cgroup like the others."""
    cgroups = [parent / str(number) for number in range(_BUSY + 1)]
    parent.mkdir()
    try:
        for cgroup in cgroups:
            cgroup.mkdir()
            (cgroup / "cpu.shares").write_text(str(shares))
            (cgroup / "cpu.cfs_quota_us").write_text("100000")
        until = time.monotonic() + seconds
        pids: list[int] = []
        for cgroup in cgroups[:_BUSY]:
            pids.append(start(cgroup, partial(compute, until)))
            pids += [start(cgroup, partial(nap, until)) for _ in range(_WAKERS)]
        ears: list[int] = []
        for place in (None, cgroups[_BUSY]):
            told, tell = os.pipe()
            pids.append(start(place, partial(beat, until, tell)))
            os.close(tell)
            ears.append(told)
        for pid in pids:
            os.waitpid(pid, 0)
        host, sibling = map(_heard, ears)
        return host, sibling
    finally:
        for cgroup in cgroups:
            cgroup.rmdir()
        parent.rmdir()


def _heard(told: int) -> float:
    with os.fdopen(told) as answer:
        return float(answer.read())


def main(seconds: float, turns: int) -> None:
    """Give all shares a turn, again and again, and print medians and the worst."""
    parent = Path(f"/sys/fs/cgroup/cpu/corral-bench-{os.getpid()}")
    waits: dict[int, list[tuple[float, float]]] = {shares: [] for shares in SHARES}
    for _ in range(turns):
        for shares, seen in waits.items():
            seen.append(longest_waits(parent, shares, seconds))
    sys.stdout.write("shares  longest wait of the host's, ms  of one in such a cgroup, ms\n")
    for shares, seen in waits.items():
        host, sibling = (
            f"{1000 * statistics.median(those):5.0f} (worst {1000 * max(those):5.0f})"
            for those in zip(*seen, strict=True)
        )
        sys.stdout.write(f"{shares:6}  {host:>31}  {sibling:>27}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    main(options.seconds, options.turns)
