"""``corral run``: while it waits."""

from __future__ import annotations

import os
import signal

import anyio
import pytest
from support.commands import invoke_now as invoke
from support.fake_client import JOB_ID, FakeJob, fake_client

from corral import Outcome, Result
from corral_worker.cli import foreground

DONE = Result(outcome=Outcome.EXITED, exit_code=0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_job_and_shows_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    async def interrupted(_: FakeJob) -> Result:
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()
        return DONE

    client = fake_client(monkeypatch, interrupted)
    invoked = invoke("run", "true")
    assert client.jobs[0].cancelled
    assert (invoked.exit_code, invoked.stdout) == (code, "part")
    assert invoked.stderr.startswith(f"corral: cancelling {JOB_ID}\n")


def test_a_second_signal_does_not_wait_for_the_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_: FakeJob) -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return DONE

    async def unanswered(_: FakeJob, *, timeout: float | None) -> bool:  # noqa: ASYNC109
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return True

    monkeypatch.setattr(FakeJob, "cancel", unanswered)
    fake_client(monkeypatch, interrupted)
    invoked = invoke("run", "true")
    assert invoked.exit_code == 130
    assert "no worker has confirmed it yet" in invoked.stderr


def test_the_end_of_patience_cancels_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(_: FakeJob) -> Result:
        await anyio.sleep_forever()
        return DONE

    client = fake_client(monkeypatch, for_ever)
    invoked = invoke("run", "--wait-timeout", "0.01", "true")
    assert client.jobs[0].cancelled
    assert invoked.exit_code == 124


def test_a_job_that_stays_queued_brings_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once_asked(job: FakeJob) -> Result:
        await job.asked.wait()
        await anyio.wait_all_tasks_blocked()
        return DONE

    monkeypatch.setattr(foreground, "_HINT_AFTER_S", 0)
    fake_client(monkeypatch, once_asked)
    invoked = invoke("run", "true")
    assert invoked.exit_code == 0
    assert invoked.stderr.startswith("corral: still queued: is a worker running for this Redis?")
