from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from corral import (
    CorralError,
    EffectiveLimits,
    ErrImageNotFound,
    ErrProgramNotFound,
    ErrSandboxExecutionFailed,
    ErrSecurityViolation,
    ErrWorkerLost,
    HostLimits,
    Job,
    Limits,
    Outcome,
    Policy,
    PolicyNarrowing,
    Termination,
)
from corral_worker.executor.executor import Attempt, Executor, Image, Runtime
from corral_worker.process.capture import Captured
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

REPORT = Report(
    start="cold",
    start_way="command_line",
    ending=Ending(outcome=Outcome.EXITED, exit_code=3),
    stdout=Captured(data=b"secret output", total=100, gap=6),
    stderr=Captured(data=b"secret complaint", total=16, gap=None),
    counters=Counters(cpu_s=0.5, peak_memory_bytes=1000, peak_tasks=7, oom_kills=0),
    host_limits=HostLimits(memory_bytes=1, swap_bytes=0, cpus=1.0, tasks=2),
    start_s=1.0,
    run_s=2.0,
    teardown_s=3.0,
    timing_unreliable=False,
    termination=None,
    leftovers=(),
    sandbox="corral-0123456789abcdef",
)
JOB = Job(
    argv=("secret-program", "secret-argument"),
    image="base",
    env={"TOKEN": "secret-value"},
    stdin=b"secret-input",
    labels={"team": "a"},
)
NOW = dt.datetime.now(dt.UTC)


class FakeImage:
    digest = "sha256:abc"
    rootfs = Path("/images/abc")


class FakeImages:
    def __init__(self, error: CorralError | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    async def resolve(self, reference: str) -> Image:
        self.asked.append(reference)
        if self.error:
            raise self.error
        return FakeImage()


class FakeSandboxes:
    def __init__(self, report: Report = REPORT) -> None:
        self.ran: list[tuple[Job, EffectiveLimits, Path, Stop]] = []
        self.report = report

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        self.ran.append((job, limits, rootfs, stop))
        await anyio.lowlevel.checkpoint()
        return self.report


def executor(
    images: FakeImages, sandboxes: FakeSandboxes, policies: dict[str, Policy] | None = None
) -> Executor:
    known = policies or {"acme": Policy()}
    return Executor(
        policy_of=lambda tenant: known[tenant],
        images=images,
        sandboxes=sandboxes,
        runtime=Runtime(runsc_version="release-1", platform="systrap", host="here"),
    )


def attempt(job: Job = JOB, enqueued_at: dt.datetime | None = None, *, number: int = 2) -> Attempt:
    return Attempt(
        job=job,
        job_id="acme:1",
        tenant="acme",
        number=number,
        enqueued_at=enqueued_at or dt.datetime.now(dt.UTC),
    )


@pytest.fixture
def images() -> FakeImages:
    return FakeImages()


@pytest.fixture
def sandboxes() -> FakeSandboxes:
    return FakeSandboxes()


async def test_what_the_tenants_policy_takes_away_is_refused_before_the_host_is_touched(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    narrowed = replace(attempt(), narrowing=PolicyNarrowing(env_denied=("TOKEN",)))

    with pytest.raises(ErrSecurityViolation) as caught:
        await executor(images, sandboxes).execute(narrowed, Stop())

    assert [violation.rule for violation in caught.value.violations] == ["env_forbidden"]
    assert (images.asked, sandboxes.ran) == ([], [])


async def test_a_result_has_all_that_is_known(images: FakeImages, sandboxes: FakeSandboxes) -> None:
    stop = Stop()

    result = await executor(images, sandboxes).execute(attempt(), stop)

    assert (result.outcome, result.exit_code, result.signal) == (Outcome.EXITED, 3, None)
    assert (result.stdout, result.stdout_bytes, result.stdout_gap) == (b"secret output", 100, 6)
    assert (result.stderr, result.stderr_bytes, result.stderr_gap) == (
        b"secret complaint",
        16,
        None,
    )
    assert result.truncated
    assert result.duration_s == 2.0
    assert (result.phases.sandbox_s, result.phases.run_s, result.phases.teardown_s) == (1, 2, 3)
    assert result.usage is not None
    assert result.usage.peak_tasks == 7
    assert result.limits == Policy().limits(JOB.limits)
    assert result.host_limits == REPORT.host_limits
    assert result.labels == {"team": "a"}
    assert result.provenance is not None
    assert result.provenance.image_digest == "sha256:abc"
    assert (result.provenance.runsc_version, result.provenance.attempt) == ("release-1", 2)
    assert (result.provenance.start, result.provenance.start_way) == ("cold", "command_line")
    assert result.started_at is not None
    assert result.started_at > NOW
    assert sandboxes.ran == [(JOB, result.limits, Path("/images/abc"), stop)]


async def test_a_certificate_reaches_the_result(images: FakeImages) -> None:
    certificate = Termination(
        cause=Outcome.WALL_TIMEOUT,
        requested_by="limit",
        steps=("runsc_kill", "runsc_delete"),
        verified_dead=True,
        latency_s=0.1,
    )
    report = replace(
        REPORT, ending=Ending(outcome=Outcome.WALL_TIMEOUT, signal=9), termination=certificate
    )

    result = await executor(images, FakeSandboxes(report)).execute(attempt(), Stop())

    assert (result.outcome, result.signal) == (Outcome.WALL_TIMEOUT, 9)
    assert result.termination == certificate


async def test_the_policy_is_asked_before_images_and_sandboxes_are_touched(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, user="root", network="host", image="no such")

    with pytest.raises(ErrSecurityViolation) as raised:
        await executor(images, sandboxes).execute(attempt(job), Stop())

    assert [violation.rule for violation in raised.value.violations] == [
        "root_user",
        "host_network",
    ]
    assert (images.asked, sandboxes.ran) == ([], [])


async def test_the_policy_is_the_tenants_own(images: FakeImages, sandboxes: FakeSandboxes) -> None:
    policy = Policy().narrowed(PolicyNarrowing(ceilings=Limits(wall_s=1)))
    job = replace(JOB, limits=Limits(wall_s=2))

    with pytest.raises(ErrSecurityViolation, match="limit_exceeds_tenant"):
        await executor(images, sandboxes, {"acme": policy}).execute(attempt(job), Stop())


async def test_an_image_the_host_lacks_starts_nothing(sandboxes: FakeSandboxes) -> None:
    images = FakeImages(ErrImageNotFound("no image"))

    with pytest.raises(ErrImageNotFound):
        await executor(images, sandboxes).execute(attempt(), Stop())

    assert sandboxes.ran == []


@pytest.mark.parametrize(
    "error",
    [ErrProgramNotFound("no"), ErrSandboxExecutionFailed("broke", retry_safety="started")],
    ids=["rejection", "fault"],
)
async def test_an_ending_that_is_an_error_is_raised(images: FakeImages, error: CorralError) -> None:
    sandboxes = FakeSandboxes(replace(REPORT, ending=error))

    with pytest.raises(type(error)) as raised:
        await executor(images, sandboxes).execute(attempt(), Stop())

    assert raised.value is error


async def test_a_job_that_waited_too_long_expires_and_nothing_is_started(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, start_within_s=10.0)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=11)

    result = await executor(images, sandboxes).execute(attempt(job, long_ago, number=1), Stop())

    assert result.outcome is Outcome.EXPIRED
    assert result.phases.queued_s >= 11
    assert result.labels == {"team": "a"}
    assert (images.asked, sandboxes.ran) == ([], [])


async def test_a_job_that_may_have_started_in_time_never_expires_afterwards(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, start_within_s=10.0, attempts=2)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=11)

    result = await executor(images, sandboxes).execute(attempt(job, long_ago, number=2), Stop())

    assert result.outcome is Outcome.EXITED


async def test_a_job_that_waited_less_than_it_may_is_run(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, start_within_s=60.0)
    ago = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)

    result = await executor(images, sandboxes).execute(attempt(job, ago, number=1), Stop())

    assert result.outcome is Outcome.EXITED


async def test_a_job_from_a_clock_that_is_ahead_has_not_waited(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, start_within_s=0.001)
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)

    result = await executor(images, sandboxes).execute(attempt(job, ahead, number=1), Stop())

    assert (result.outcome, result.phases.queued_s) == (Outcome.EXITED, 0)


async def test_a_job_cancelled_before_its_start_is_cancelled_even_if_it_breaks_rules(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    stop = Stop()
    stop.request("cancelled")

    result = await executor(images, sandboxes).execute(attempt(replace(JOB, user="root")), stop)

    assert (result.outcome, result.labels) == (Outcome.CANCELLED, {"team": "a"})
    assert (images.asked, sandboxes.ran) == ([], [])


async def test_a_worker_that_stops_before_the_start_says_that_a_retry_is_safe(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    stop = Stop()
    stop.request("shutdown")

    with pytest.raises(ErrWorkerLost) as raised:
        await executor(images, sandboxes).execute(attempt(), stop)

    assert raised.value.retry_safety == "not_started"
    assert (images.asked, sandboxes.ran) == ([], [])


def lines(logs: Sequence[object]) -> str:
    return "\n".join(map(str, logs))


async def test_one_line_is_logged_and_no_payload_is_in_it(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    with capture_logs() as logs:
        await executor(images, sandboxes).execute(attempt(), Stop())

    assert [entry["event"] for entry in logs] == ["job.finished"]
    assert logs[0]["outcome"] == "exited"
    assert (logs[0]["job_id"], logs[0]["tenant"], logs[0]["attempt"]) == ("acme:1", "acme", 2)
    assert (logs[0]["stdout_bytes"], logs[0]["stderr_bytes"]) == (100, 16)
    assert "secret" not in lines(logs)


async def test_a_refusal_is_logged_by_its_code_and_no_payload_is_in_it(
    images: FakeImages, sandboxes: FakeSandboxes
) -> None:
    job = replace(JOB, user="root", env={"CORRAL_X": "secret", "secret name": ""})

    with capture_logs() as logs, pytest.raises(ErrSecurityViolation):
        await executor(images, sandboxes).execute(attempt(job), Stop())

    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("job.finished", "security_violation")
    ]
    assert logs[0]["log_level"] == "warning"
    assert logs[0]["rules"] == ["root_user", "env_forbidden", "env_forbidden"]
    assert "secret" not in lines(logs)


async def test_a_rejection_is_logged_without_its_message_which_may_quote_the_job(
    images: FakeImages,
) -> None:
    sandboxes = FakeSandboxes(replace(REPORT, ending=ErrProgramNotFound("no secret-program")))

    with capture_logs() as logs, pytest.raises(ErrProgramNotFound):
        await executor(images, sandboxes).execute(attempt(), Stop())

    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("job.finished", "program_not_found")
    ]
    assert logs[0]["log_level"] == "info"
    assert "secret" not in lines(logs)


async def test_a_fault_is_logged_as_an_error_with_all_that_is_known_of_it(
    images: FakeImages,
) -> None:
    fault = ErrSandboxExecutionFailed("it broke", retry_safety="started", detail="/srv: panic")
    sandboxes = FakeSandboxes(replace(REPORT, ending=fault))

    with capture_logs() as logs, pytest.raises(ErrSandboxExecutionFailed):
        await executor(images, sandboxes).execute(attempt(), Stop())

    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("job.finished", "error")
    assert (entry["error"], entry["retry_safety"]) == ("sandbox_execution_failed", "started")
    assert (entry["message"], entry["detail"]) == ("it broke", "/srv: panic")
    assert (entry["job_id"], entry["tenant"], entry["attempt"]) == ("acme:1", "acme", 2)
    assert "secret" not in lines(logs)
