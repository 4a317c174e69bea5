"""Runs many jobs that end in all ways, while runsc and workers get killed.

Usage: python -m soak [--jobs N] [--slots N] [--seed N] [--runsc-kills N] [--worker-kills N]
                      [--output FILE]
Every job must have exactly one ending, the right one, and nothing may be left
on the host. Prints what was seen, writes it as JSON beside the log of the workers,
and exits with 1 if anything is wrong. CORRAL_... variables are passed on to the worker.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import msgspec
from soak.kinds import KINDS, draw
from soak.stage import Stage

from corral import (
    Client,
    CorralError,
    ErrDaemonUnavailable,
    ErrWorkerLost,
    Fault,
    Job,
    Result,
    SubmittedJob,
    keys,
)
from corral.connection import connect

T = TypeVar("T")

TENANTS = ("red", "green", "blue")
RESULT_WITHIN_S = 180.0
_SUBMITTED_WITHIN_S = 1.0


class Options(argparse.Namespace):
    """What was asked for."""

    jobs: int
    slots: int
    seed: int
    runsc_kills: int
    worker_kills: int
    output: Path


class Entry:
    """One job of the soak and what is known of it."""

    def __init__(self, number: int, kind: str, job: Job) -> None:
        self.number = number
        self.kind = kind
        self.job = job
        self.id = ""
        self.ending: Result | CorralError | None = None
        self.cancelled: bool | None = None
        """What its canceller was told."""
        self.runsc_kills = 0
        """How many runsc processes were killed while it ran, one of them perhaps its own."""
        self.worker_kills = 0

    def complaint(self) -> str | None:
        """Return what is wrong with how it ended; None if nothing is."""
        how = self.ending
        if isinstance(how, Result):
            if not KINDS[self.kind].is_right(self.number, how):
                shown = msgspec.structs.replace(how, stdout=how.stdout[:80], limits=None)
                return f"ended wrongly: {shown}"
            if self.cancelled is not None and self.cancelled != (how.outcome == "cancelled"):
                return f"cancel said {self.cancelled}, the outcome is {how.outcome}"
            return None
        if isinstance(how, ErrWorkerLost):
            return None if self.worker_kills >= self.job.attempts else f"lost for nothing: {how}"
        if isinstance(how, Fault):
            return None if self.runsc_kills else f"a fault for nothing: {how} {how.detail}"
        return f"refused: {how!r}"


class Soak:
    """One run.

    Args:
        options: how much of what.
        stage: where it happens.
        client: who submits.
    """

    def __init__(self, options: Options, stage: Stage, client: Client) -> None:
        self._options = options
        self._stage = stage
        self._client = client
        self._redis = connect(stage.url)
        self._chance = random.Random(options.seed)
        self._open = anyio.Semaphore(3 * options.slots)
        self._done = 0
        self.unanswered = 0
        self.killed: collections.Counter[str] = collections.Counter()
        self.entries = [self._entry(number) for number in range(options.jobs)]

    def _entry(self, number: int) -> Entry:
        kind = draw(self._chance)
        job = msgspec.structs.replace(
            KINDS[kind].job(number), attempts=self._chance.choice((1, 4)), start_within_s=None
        )
        return Entry(number, kind, job)

    async def run(self) -> None:
        """Submit all jobs, a few at a time, and wait for all endings."""
        async with anyio.create_task_group() as chaos:
            chaos.start_soon(self._kill)
            async with anyio.create_task_group() as jobs:
                for entry in self.entries:
                    await self._open.acquire()
                    jobs.start_soon(self._follow, entry, self._chance.random())
            chaos.cancel_scope.cancel()
        await self._redis.aclose(close_connection_pool=True)

    async def _follow(self, entry: Entry, moment: float) -> None:
        submitted = await self._answered(
            lambda: self._client.submit(
                entry.job,
                tenant=TENANTS[entry.number % 3],
                idempotency_key=f"soak-{entry.number}",
            )
        )
        entry.id = submitted.id
        async with anyio.create_task_group() as tasks:
            if KINDS[entry.kind].cancels:
                tasks.start_soon(self._cancel, entry, submitted, 3 * moment)
            try:
                entry.ending = await self._answered(
                    lambda: submitted.result(timeout=RESULT_WITHIN_S)
                )
            except CorralError as error:
                entry.ending = error
        self._done += 1
        self._open.release()

    async def _cancel(self, entry: Entry, submitted: SubmittedJob, after_s: float) -> None:
        await anyio.sleep(after_s)
        entry.cancelled = await self._answered(lambda: submitted.cancel(timeout=RESULT_WITHIN_S))

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call once with effect, however often that takes: Redis may be starved, too."""
        with anyio.fail_after(RESULT_WITHIN_S):
            while True:
                try:
                    return await call()
                except ErrDaemonUnavailable:
                    self.unanswered += 1

    async def _kill(self) -> None:
        """Kill what is to be killed, each at a share of the jobs done."""
        options = self._options
        total = options.runsc_kills + options.worker_kills
        plan = ["worker"] * options.worker_kills + ["runsc"] * options.runsc_kills
        self._chance.shuffle(plan)
        for place, what in enumerate(plan, start=1):
            while self._done < options.jobs * place / (total + 1):
                await anyio.sleep(0.01)
            before = await self._running()
            if what == "worker":
                await self._stage.kill_worker()
                self.killed["worker"] += 1
                # What was being submitted just then may have been claimed as well.
                await anyio.sleep(_SUBMITTED_WITHIN_S)
                before |= await self._running()
                await self._stage.start_worker()
            elif name := self._stage.kill_a_runsc(self._chance):
                self.killed[name] += 1
            touched = before | await self._running()
            for entry in self.entries:
                if entry.id in touched:
                    entry.worker_kills += what == "worker"
                    entry.runsc_kills += what == "runsc"

    async def _running(self) -> set[str]:
        prefix = keys.in_progress("")
        found = [key async for key in self._redis.scan_iter(match=f"{prefix}*", count=1000)]
        # Those that are being claimed just now count, too.
        return {key.decode().removeprefix(prefix) for key in found} | {
            entry.id for entry in self.entries if entry.id and entry.ending is None
        }

    async def endings_of_each(self) -> collections.Counter[str]:
        """Return how often each job ended, by the results streams."""
        told: collections.Counter[str] = collections.Counter()
        redis = connect(self._stage.url)
        for tenant in TENANTS:
            for _, fields in await redis.xrange(keys.results(tenant)):
                told[fields[b"id"].decode()] += 1
        await redis.aclose(close_connection_pool=True)
        return told


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)] if values else math.nan


def report(soak: Soak, told: collections.Counter[str]) -> tuple[dict[str, object], list[str]]:
    """Return what was seen, and all that is wrong."""
    entries = soak.entries
    wrong = [
        f"{entry.id} ({entry.kind}): {complaint}"
        for entry in entries
        if (complaint := entry.complaint())
    ]
    wrong += [f"{e.id} ({e.kind}): {told[e.id]} endings" for e in entries if told[e.id] != 1]
    results = [entry.ending for entry in entries if isinstance(entry.ending, Result)]
    deaths = [one.termination.latency_s * 1000 for one in results if one.termination is not None]
    faults = [e.ending.code for e in entries if isinstance(e.ending, CorralError)]
    kills = soak.killed.total() - soak.killed["worker"]
    if len([code for code in faults if code != "worker_lost"]) > kills:
        wrong.append(f"{len(faults)} faults of {kills} killed runsc processes")
    ways = collections.Counter([*(str(one.outcome) for one in results), *faults])
    seen: dict[str, object] = {
        "jobs": len(entries),
        "endings": dict(ways.most_common()),
        "killed": dict(soak.killed),
        "unanswered_calls": soak.unanswered,
        "kill_latency_p50_ms": round(percentile(deaths, 0.5), 1),
        "kill_latency_p99_ms": round(percentile(deaths, 0.99), 1),
    }
    return seen, wrong


async def main(options: Options) -> int:
    began = time.monotonic()
    environ = {name: value for name, value in os.environ.items() if name.startswith("CORRAL_")}
    environ |= {
        "CORRAL_SLOTS": str(options.slots),
        "CORRAL_STREAM_ENTRIES": "1000000",
        "CORRAL_LOST_LEASES": "10",
    }
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        stage = Stage(Path(name), environ)
        try:
            await stage.start_redis()
            await stage.start_worker()
            async with Client(stage.url) as client:
                await (await client.submit(KINDS["succeeds"].job(0))).result(timeout=60)
                soak = Soak(options, stage, client)
                await soak.run()
                seen, wrong = report(soak, await soak.endings_of_each())
                seen["worker_peak_mb"] = round(stage.peak_memory_mb(), 1)
                seen["worker_descriptors"] = stage.descriptors()
            if code := await stage.stop_worker():
                wrong.append(f"the worker exited with {code}")
            wrong += [str(entry) for entry in stage.events("job.crashed")]
            left = stage.leftovers()
        finally:
            stage.close()
            options.output.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(stage.log, options.output.with_suffix(".log"))
    seen |= {"leftovers": sum(map(len, left.values())), "seconds": round(time.monotonic() - began)}
    wrong += [f"left behind: {kind}: {what}" for kind, those in left.items() for what in those]
    seen |= {"seed": options.seed, "wrong": wrong}
    lines = [
        f"{title.replace('_', ' '):22} {what}" for title, what in seen.items() if what != wrong
    ]
    sys.stdout.write("\n".join([*lines, *(f"WRONG: {one}" for one in wrong), ""]))
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(seen)))
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--runsc-kills", type=int, default=40)
    parser.add_argument("--worker-kills", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    sys.exit(anyio.run(main, parser.parse_args(namespace=Options())))
