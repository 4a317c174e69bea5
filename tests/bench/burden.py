"""What many running jobs, and much output, take of the worker and its host."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
from bench.bare import PROGRAMS, Bare
from bench.figures import Figures
from bench.ground import Ground
from bench.served import Plan, Served, serving

from corral import Job, Limits, SubmittedJob

_MANY = 256
_STEPS = (1, 8, 32)
"""As many as two processors stand: each sandbox takes a twentieth of one, whatever it does."""
_RUNNING_WITHIN_S = 400.0
_WATCHED_S = 5.0
_FLOODED_S = 20.0
_OUTPUT_MB = 100.0
_MANY_PLAN = Plan(slots=_MANY, warm=0)
_CROWD_PLAN = Plan(
    slots=_MANY,
    warm=0,
    environ={
        "CORRAL_RUNSC_PATH": str(Path(__file__).with_name("stand_in")),
        # So many start at one time that each takes long.
        "CORRAL_START_TIMEOUT_S": "600",
        "CORRAL_LEASE_S": "60",
    },
)
_LIMITS = Limits(wall_s=900)
_SLEEPER = Job(argv=("sleep", "800"), image="base", limits=_LIMITS)
_FLOOD = Job(argv=("yes",), image="base", limits=_LIMITS)


async def output(ground: Ground, bares: dict[str, Bare], figures: Figures, *, runs: int) -> None:
    """Measure one job with much output: its rate, and the worker's peak memory."""
    rates: list[float] = []
    bare_rates: list[float] = []
    async with serving(ground, {"output": Plan(slots=4, warm=0)}) as served:
        worker = served["output"]
        await worker.run(PROGRAMS["true"])
        worker.forget_peak()
        before = worker.memory_mb()
        for _ in range(runs):
            bare_rates.append(_OUTPUT_MB / await bares["bare_erofs"].run("output"))
            began = time.monotonic()
            result = await worker.run(PROGRAMS["output"])
            rates.append(_OUTPUT_MB / (time.monotonic() - began))
            assert result.stdout_bytes == _OUTPUT_MB * 1024 * 1024
        figures |= {
            "bare_output_mb_per_s": round(max(bare_rates), 1),
            "output_mb_per_s": round(max(rates), 1),
            "output_worker_before_mb": round(before, 1),
            "output_worker_peak_mb": round(worker.peak_memory_mb(), 1),
        }


async def many(ground: Ground, figures: Figures) -> None:
    """Measure how the costs grow with the number of sleeping jobs, and what waits."""
    plans = {"many": _MANY_PLAN, "waiting": Plan(slots=4, warm=4)}
    async with serving(ground, plans) as served:
        waiting, worker = served["waiting"], served["many"]
        await _running(waiting, 1)
        await anyio.sleep(_WATCHED_S)
        count = waiting.sandboxes()
        figures["warm_sandbox_mb"] = round(waiting.sandbox_memory_mb() / count, 1)
        jobs: list[SubmittedJob] = []
        for step in _STEPS:
            more = [_SLEEPER] * (step - len(jobs))
            jobs += await worker.client.submit_many(more, tenant="bench")
            await _running(worker, step)
            before = worker.spent()
            await anyio.sleep(_WATCHED_S)
            spent = worker.spent().since(before)
            figures[f"sleeping_{step}_job_mb"] = round(worker.sandbox_memory_mb() / step, 1)
            figures[f"sleeping_{step}_worker_mb"] = round(worker.memory_mb(), 1)
            figures[f"sleeping_{step}_worker_cpu_ms_per_s"] = round(
                1000 * spent.worker / _WATCHED_S, 1
            )
        await _cancel(jobs)


async def crowd(ground: Ground, figures: Figures) -> None:
    """Measure a worker with as many jobs as it can have: those that sleep, then those that flood.

    Those that flood all end at the same moment, each with as much output as is kept. What it
    runs is a stand-in for runsc: these are the worker's own costs.
    """
    async with serving(ground, {"crowd": _CROWD_PLAN}) as served:
        worker = served["crowd"]
        for kind, job in (("sleeping", _SLEEPER), ("flooding", _FLOOD)):
            jobs = await worker.client.submit_many([job] * _MANY, tenant="bench")
            await _running(worker, _MANY)
            worker.forget_peak()
            before = worker.spent()
            await anyio.sleep(_FLOODED_S)
            spent = worker.spent().since(before)
            figures[f"worker_mb_{_MANY}_{kind}"] = round(worker.memory_mb(), 1)
            figures[f"worker_cpu_ms_per_s_{_MANY}_{kind}"] = round(
                1000 * spent.worker / _FLOODED_S, 1
            )
            if kind == "flooding":
                figures[f"worker_peak_mb_{_MANY}"] = round(worker.peak_memory_mb(), 1)
                worker.forget_peak()
            await _cancel(jobs)
        figures[f"worker_peak_mb_{_MANY}_ending"] = round(worker.peak_memory_mb(), 1)


async def _running(worker: Served, count: int) -> None:
    with anyio.fail_after(_RUNNING_WITHIN_S):
        while worker.sandboxes() < count:
            await anyio.sleep(0.1)


async def _cancel(jobs: list[SubmittedJob]) -> None:
    async def cancel(job: SubmittedJob) -> None:
        await job.cancel(timeout=_RUNNING_WITHIN_S)

    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(cancel, job)
