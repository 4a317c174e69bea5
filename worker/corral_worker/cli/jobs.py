"""``corral jobs``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import click
import msgspec

from corral import Client, Explanation, Fault, JobStatus, SubmittedJob, WaitsFor
from corral_worker.cli.asking import finish
from corral_worker.cli.text import printable

T = TypeVar("T")


@click.group()
def jobs() -> None:
    """Show why a job waits or where it runs, or cancel it.

    Jobs are in the Redis that CORRAL_REDIS_URL names.
    """


_of_tenant = click.option(
    "--tenant",
    metavar="NAME",
    help="Whose job it is, for an id of stock arq's own, which names no tenant.",
)


@jobs.command()
@click.argument("job_id", metavar="ID")
@_of_tenant
@click.option("--json", is_flag=True, help="Print a JSON object.")
def show(*, job_id: str, tenant: str | None, json: bool) -> None:
    """Show where a job is, and why it waits if it does."""
    found = _ask(job_id, tenant, SubmittedJob.explain)
    if json:
        click.echo(msgspec.json.encode(found))
        return
    click.echo(f"{found.job_id}  {found.status}")
    for line in describe(found):
        click.echo(f"  {printable(line)}")


@jobs.command()
@click.argument("job_id", metavar="ID")
@_of_tenant
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until its sandbox is dead.",
)
def cancel(*, job_id: str, tenant: str | None, wait: float) -> None:
    """Cancel a job, and wait until it has ended."""

    async def end(job: SubmittedJob) -> bool:
        try:
            return await job.cancel(timeout=wait)
        except TimeoutError:
            raise Fault(
                f"no worker has confirmed within {wait:g} s that {job_id} has ended; the request"
                " stands",
                retry_safety="unknown",
            ) from None

    cancelled = _ask(job_id, tenant, end)
    click.echo(f"{job_id} {'is cancelled' if cancelled else 'had ended by itself'}")


def describe(job: Explanation) -> Iterator[str]:
    """Yield what there is to say of a job, a line each. A pure function."""
    match job.status:
        case JobStatus.QUEUED | JobStatus.DEFERRED:
            yield from (_reason(job, reason) for reason in job.waits_for)
        case JobStatus.RUNNING:
            yield _running(job)
            if job.cancel_requested:
                yield "it was asked to end"
        case JobStatus.FINISHED:
            yield _ending(job)
    if job.lost_leases:
        yield f"{job.lost_leases} worker(s) went away while they held it"
    if job.dead_letter:
        yield f"it was given up and kept: corral dead show {job.job_id}"


def _reason(job: Explanation, reason: WaitsFor) -> str:
    match reason:
        case WaitsFor.WORKER:
            short_of = ", ".join(job.hosts_short_of)
            return (
                f"no worker takes jobs: short of {short_of}" if short_of else "no worker is alive"
            )
        case WaitsFor.RESUMPTION:
            return "its tenant is suspended"
        case WaitsFor.ADMISSION:
            return "its tenant is not known, and only known ones are served"
        case WaitsFor.START_TIME:
            return f"delayed until {_time(job.starts_at)}"
        case WaitsFor.CONCURRENCY:
            return f"its tenant is at its concurrency cap ({job.tenant_running} running)"
        case WaitsFor.EARLIER_JOBS:
            return f"behind {job.jobs_ahead} job(s) of its tenant"
        case WaitsFor.SLOT:
            return "its tenant's next: it waits for a free slot of a worker"


def _running(job: Explanation) -> str:
    lease = f"lease ends in {job.lease_ends_in_s or 0:.1f} s unless renewed"
    if job.worker is None:
        return f"held by a worker of stock arq, {lease}"
    begun = "running" if job.begun else "about to start"
    return (
        f"{begun} on worker {job.worker} since {_time(job.claimed_at)}, attempt {job.attempt},"
        f" {lease}"
    )


def _ending(job: Explanation) -> str:
    if job.outcome is not None:
        return f"outcome: {job.outcome}"
    return f"error: {job.error}" if job.error is not None else "its result has expired"


def _time(when: dt.datetime | None) -> str:
    return "-" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _ask(job_id: str, tenant: str | None, question: Callable[[SubmittedJob], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with Client() as client:
            return await question(client.job(job_id, tenant=tenant))

    return finish(ask)
