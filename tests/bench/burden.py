"""What many running jobs, and much output, take of the worker and its host."""

from __future__ import annotations

import time

import anyio
from bench.bare import PROGRAMS, Bare
from bench.figures import Figures
from bench.ground import Ground
from bench.served import Plan, Served, serving

from corral import Job, Limits, SubmittedJob

_MANY = 256
_STEPS = (1, 16, 64, _MANY)
_RUNNING_WITHIN_S = 400.0
_WATCHED_S = 5.0
_FLOODED_S = 15.0
_OUTPUT_MB = 100.0
_MANY_PLAN = Plan(
    slots=_MANY,
    warm=0,
    # So many start at one time that each takes long.
    environ={"CORRAL_START_TIMEOUT_S": "600", "CORRAL_LEASE_S": "60"},
)
_LIMITS = Limits(wall_s=900)
_SLEEPER = Job(argv=("sleep", "800"), image="base", limits=_LIMITS)
_FLOOD = "while [ $(date +%s) -lt {at:.0f} ]; do sleep 1; done; exec yes"


async def output(ground: Ground, bares: dict[str, Bare], *, runs: int) -> Figures:
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
        return {
            "bare_output_mb_per_s": round(max(bare_rates), 1),
            "output_mb_per_s": round(max(rates), 1),
            "output_worker_before_mb": round(before, 1),
            "output_worker_peak_mb": round(worker.peak_memory_mb(), 1),
        }


async def many(ground: Ground) -> Figures:
    """Measure how the costs grow with the number of sleeping jobs, and what waits."""
    figures: Figures = {}
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
    return figures


async def flood(ground: Ground, *, jobs_per_s: float) -> Figures:
    """Measure the worker's peak memory while as many jobs as can be write all they can."""
    async with serving(ground, {"flood": _MANY_PLAN}) as served:
        worker = served["flood"]
        at = time.time() + 30 + 1.5 * _MANY / jobs_per_s
        job = Job(argv=("sh", "-c", _FLOOD.format(at=at)), image="base", limits=_LIMITS)
        jobs = await worker.client.submit_many([job] * _MANY, tenant="bench")
        await _running(worker, _MANY)
        before = worker.memory_mb()
        await anyio.sleep(max(0.0, at - time.time()) + _FLOODED_S)
        peak = worker.peak_memory_mb()
        await _cancel(jobs)
        return {"worker_mb_256_silent": round(before, 1), "worker_peak_mb_256": round(peak, 1)}


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
