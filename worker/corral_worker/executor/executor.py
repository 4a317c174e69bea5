"""One attempt at one job: policy, image, sandbox, outcome."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from corral import (
    CorralError,
    EffectiveLimits,
    ErrSandboxExecutionFailed,
    ErrSecurityViolation,
    ErrWorkerLost,
    Fault,
    Job,
    Outcome,
    Phases,
    Policy,
    PolicyNarrowing,
    Provenance,
    Result,
    Usage,
)
from corral_worker.process.thread import in_thread
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try to run a job."""

    job: Job
    job_id: str
    tenant: str
    number: int
    enqueued_at: dt.datetime
    """When it was due, by this host's clock."""
    begin: Callable[[], Awaitable[None]] | None = None
    """Awaited right before the program starts; raises if it must not."""
    room: Callable[[int], Awaitable[None]] | None = None
    """Awaited before so many bytes of output are read into memory."""
    narrowing: PolicyNarrowing = PolicyNarrowing()
    """What the tenant's policy takes away at this time, beyond what this worker's settings do."""

    @property
    def is_first(self) -> bool:
        """Whether the program has certainly not begun before."""
        return self.number == 1


class Image(Protocol):
    """A root file system to run in."""

    @property
    def digest(self) -> str:
        """Its ``sha256:`` digest."""

    @property
    def rootfs(self) -> Path:
        """Its EROFS file."""


class Images(Protocol):
    """Where images come from."""

    async def resolve(self, reference: str) -> Image:
        """Return the image of a name or digest.

        Raises:
            ErrImageNotFound: there is none.
        """


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of every sandbox of this worker."""

    runsc_version: str
    platform: str
    host: str = socket.gethostname()


class Executor:
    """Runs attempts, each in a fresh sandbox, and logs one line about each.

    Args:
        policy_of: gives the policy that holds for a tenant.
        images: where images come from.
        sandboxes: what runs the programs.
        runtime: goes into every result.
        on_fault: told each fault of the host or of ours.
    """

    def __init__(
        self,
        *,
        policy_of: Callable[[str], Policy],
        images: Images,
        sandboxes: Sandboxes,
        runtime: Runtime,
        on_fault: Callable[[Fault], None] = lambda _: None,
    ) -> None:
        self._policy_of = policy_of
        self._images = images
        self._sandboxes = sandboxes
        self._runtime = runtime
        self._on_fault = on_fault
        self._log = structlog.get_logger()

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        """Run one attempt to its end and return how it ended.

        ``stop`` ends it earlier. On cancellation the sandbox is dead and gone
        before this raises.

        Raises:
            ErrSecurityViolation: the job breaks the tenant's policy; the host
                was not touched.
            ErrImageNotFound: the host does not have the image.
            ErrProgramNotFound: the image does not have the program.
            Fault: our side failed; ``retry_safety`` says how far it had come.
        """
        log = self._log.bind(
            job_id=attempt.job_id,
            tenant=attempt.tenant,
            attempt=attempt.number,
            image=attempt.job.image,
            labels=attempt.job.labels,
        )
        try:
            result = await self._execute(attempt, stop)
        except Fault as error:
            self._on_fault(error)
            log.error(  # noqa: TRY400 - a fault explains itself; its trace is always the same
                "job.finished",
                error=error.code,
                retry_safety=error.retry_safety,
                message=error.message,
                detail=error.detail,
            )
            raise
        except ErrSecurityViolation as error:
            rules = [violation.rule for violation in error.violations]
            log.warning("job.finished", error=error.code, rules=rules)
            raise
        except CorralError as error:
            # Not the message: it may quote the job.
            log.info("job.finished", error=error.code)
            raise
        log.info(
            "job.finished",
            outcome=str(result.outcome),
            exit_code=result.exit_code,
            duration_s=round(result.duration_s, 3),
            queued_s=round(result.phases.queued_s, 3),
            sandbox_s=round(result.phases.sandbox_s, 3),
            cpu_s=round(result.usage.cpu_s, 3) if result.usage else None,
            peak_memory_bytes=result.usage.peak_memory_bytes if result.usage else None,
            stdout_bytes=result.stdout_bytes,
            stderr_bytes=result.stderr_bytes,
        )
        return result

    async def _execute(self, attempt: Attempt, stop: Stop) -> Result:
        job = attempt.job
        if stop.cause == "cancelled":
            return Result(outcome=Outcome.CANCELLED, labels=job.labels)
        if stop.cause is not None:
            raise ErrWorkerLost("the worker was stopped before the program started")
        limits = self._policy_of(attempt.tenant).narrowed(attempt.narrowing).enforce(job)
        began = dt.datetime.now(dt.UTC)
        queued_s = max(0.0, (began - attempt.enqueued_at).total_seconds())
        if attempt.is_first and job.start_within_s is not None and queued_s > job.start_within_s:
            return Result(
                outcome=Outcome.EXPIRED, phases=Phases(queued_s=queued_s), labels=job.labels
            )
        image = await self._images.resolve(job.image)
        if attempt.begin is not None:
            await attempt.begin()
        if stop.cause == "cancelled":
            return Result(outcome=Outcome.CANCELLED, labels=job.labels)
        report = await self._sandboxes.run(job, limits, image.rootfs, stop)
        with report.stdout, report.stderr:
            if isinstance(report.ending, CorralError):
                raise report.ending
            stdout, stderr = await _output(attempt, report)
        return _result(
            job,
            report,
            report.ending,
            stdout=stdout,
            stderr=stderr,
            limits=limits,
            queued_s=queued_s,
            started_at=began + dt.timedelta(seconds=report.start_s),
            provenance=Provenance(
                image_digest=image.digest,
                runsc_version=self._runtime.runsc_version,
                platform=self._runtime.platform,
                host=self._runtime.host,
                attempt=attempt.number,
                start=report.start,
                start_way=report.start_way,
            ),
        )


async def _output(attempt: Attempt, report: Report) -> tuple[bytes, bytes]:
    """Return both streams; what is on disk is read once there is room for it."""
    size = report.stdout.on_disk + report.stderr.on_disk
    if not size:
        return report.stdout.data, report.stderr.data
    if attempt.room is not None:
        await attempt.room(size)
    try:
        return await in_thread(lambda: (report.stdout.data, report.stderr.data))
    except OSError as error:
        raise ErrSandboxExecutionFailed(
            f"the program's output cannot be read back: {error.strerror}",
            retry_safety="started",
            detail=str(error),
        ) from error


def _result(
    job: Job,
    report: Report,
    ending: Ending,
    *,
    stdout: bytes,
    stderr: bytes,
    limits: EffectiveLimits,
    queued_s: float,
    started_at: dt.datetime,
    provenance: Provenance,
) -> Result:
    return Result(
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        signal=ending.signal,
        stdout=stdout,
        stderr=stderr,
        stdout_bytes=report.stdout.total,
        stderr_bytes=report.stderr.total,
        stdout_gap=report.stdout.gap,
        stderr_gap=report.stderr.gap,
        truncated=report.stdout.gap is not None or report.stderr.gap is not None,
        duration_s=report.run_s,
        usage=Usage(
            cpu_s=report.counters.cpu_s,
            peak_memory_bytes=report.counters.peak_memory_bytes,
            peak_tasks=report.counters.peak_tasks,
        ),
        phases=Phases(
            queued_s=queued_s,
            sandbox_s=report.start_s,
            run_s=report.run_s,
            teardown_s=report.teardown_s,
        ),
        timing_unreliable=report.timing_unreliable,
        limits=limits,
        host_limits=report.host_limits,
        termination=report.termination,
        provenance=provenance,
        started_at=started_at,
        labels=job.labels,
    )
