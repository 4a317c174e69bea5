"""The jobs of the demo, and what each is to come to."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec

from corral import (
    Client,
    CorralError,
    ErrSecurityViolation,
    Fault,
    Job,
    JobStatus,
    Limits,
    Mount,
    Outcome,
    Result,
    SubmittedJob,
)

_TENANT = "default"
_WITHIN_S = 120.0
_OUTPUT_WITHIN_S = 2.0

_COMPUTE = "print(sum(n * n for n in range(1_000_000)))"
_TICK = """\
import itertools, time
for n in itertools.count():
    print("tick", n, flush=True)
    time.sleep(0.2)
"""
_FAIL = "import sys; print('no luck', file=sys.stderr); sys.exit(3)"
_HOARD = "hoard = bytearray(512 * 1024 * 1024)"


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the demo."""

    title: str
    job: Job
    accepted: Callable[[Result | CorralError], bool]
    """Whether an ending is the one that belongs to the job."""
    cancelled: bool = False
    """Whether the job is cancelled as it runs."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A job of the demo, and how it ended."""

    show: Show
    ending: Result | CorralError

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it should."""
        return self.show.accepted(self.ending)


async def play(show: Show, client: Client) -> Shown:
    """Submit a job and wait for its end, for two minutes at most."""
    ending: Result | CorralError = Fault(
        f"did not end within {_WITHIN_S:.0f} s", retry_safety="unknown"
    )
    with anyio.move_on_after(_WITHIN_S):
        try:
            submitted = await client.submit(show.job, tenant=_TENANT)
            if show.cancelled:
                await _running(submitted)
                await submitted.cancel(timeout=None)
            ending = await submitted.result()
        except CorralError as error:
            ending = error
    return Shown(show=show, ending=ending)


async def _running(job: SubmittedJob) -> None:
    while await job.status() in {JobStatus.QUEUED, JobStatus.DEFERRED}:
        await anyio.sleep(0.05)
    # Running begins with the sandbox; the program is to have written something.
    await anyio.sleep(_OUTPUT_WITHIN_S)


def _python(program: str, **limits: float) -> Job:
    return Job(
        argv=("python3", "-c", program),
        limits=msgspec.convert(limits, Limits),
        labels={"demo": "corral"},
    )


def _exited(code: int, stdout: bytes = b"", stderr: bytes = b"") -> Callable[[object], bool]:
    def accepted(ending: object) -> bool:
        return (
            isinstance(ending, Result)
            and ending.outcome is Outcome.EXITED
            and (ending.exit_code, ending.stdout, ending.stderr) == (code, stdout, stderr)
        )

    return accepted


def _ended(outcome: Outcome, begins: bytes = b"") -> Callable[[object], bool]:
    def accepted(ending: object) -> bool:
        return (
            isinstance(ending, Result)
            and ending.outcome is outcome
            and ending.stdout.startswith(begins)
        )

    return accepted


def _refused(*rules: str) -> Callable[[object], bool]:
    def accepted(ending: object) -> bool:
        return isinstance(ending, ErrSecurityViolation) and {
            violation.rule for violation in ending.violations
        } == set(rules)

    return accepted


SHOWS = (
    Show(
        title="computes and prints",
        job=_python(_COMPUTE),
        accepted=_exited(0, stdout=b"333332833333500000\n"),
    ),
    Show(
        title="exits with 3",
        job=_python(_FAIL),
        accepted=_exited(3, stderr=b"no luck\n"),
    ),
    Show(
        title="runs for ever, limit 1 s",
        job=_python(_TICK, wall_s=1.0),
        accepted=_ended(Outcome.WALL_TIMEOUT, b"tick 0\n"),
    ),
    Show(
        title="hoards memory, limit 64 MiB",
        job=_python(_HOARD, memory_bytes=64 * 1024 * 1024),
        accepted=_ended(Outcome.OUT_OF_MEMORY),
    ),
    Show(
        title="is cancelled as it runs",
        job=_python(_TICK),
        accepted=_ended(Outcome.CANCELLED, b"tick 0\n"),
        cancelled=True,
    ),
    Show(
        title="asks for root and the host",
        job=Job(
            argv=("sh", "-c", "cat /host/etc/shadow"),
            privileged=True,
            user="root",
            network="host",
            mounts=(Mount(source="/", target="/host"),),
        ),
        accepted=_refused("privileged", "root_user", "host_network", "host_mount"),
    ),
)
