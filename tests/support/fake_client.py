"""A client whose jobs end as they were told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest

from corral import CorralError, Job, JobStatus, Outcome, Result
from corral_worker.cli import foreground

URL = "redis://worker:hunter2@127.0.0.1:1/0"
"""Of a Redis that does not answer."""
JOB_ID = "default:1"
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


class FakeJob:
    """A submitted job that ends as it was told to."""

    id = JOB_ID

    def __init__(self, ending: Callable[[FakeJob], Awaitable[Result]]) -> None:
        self.cancelled = False
        self.asked = anyio.Event()
        self._ending = ending

    async def result(self) -> Result:
        if self.cancelled:
            return Result(outcome=Outcome.CANCELLED, stdout=b"part", started_at=STARTED)
        return await self._ending(self)

    async def status(self) -> JobStatus:
        self.asked.set()
        return JobStatus.QUEUED

    async def cancel(self, *, timeout: float | None) -> bool:  # noqa: ASYNC109
        self.cancelled = True
        return True


class FakeClient:
    """Remembers what was submitted."""

    def __init__(self, ending: Callable[[FakeJob], Awaitable[Result]]) -> None:
        self._ending = ending
        self.submitted: list[tuple[Job, str]] = []
        self.jobs: list[FakeJob] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[FakeClient]:
        yield self

    async def submit(self, job: Job, *, tenant: str) -> FakeJob:
        self.submitted.append((job, tenant))
        self.jobs.append(FakeJob(self._ending))
        return self.jobs[-1]


def fake_client(
    monkeypatch: pytest.MonkeyPatch, ending: Callable[[FakeJob], Awaitable[Result]]
) -> FakeClient:
    client = FakeClient(ending)
    monkeypatch.setattr(foreground, "Client", client)
    return client


def ends_with(monkeypatch: pytest.MonkeyPatch, ending: Result | CorralError) -> FakeClient:
    async def end(_: FakeJob) -> Result:
        if isinstance(ending, CorralError):
            raise ending
        return ending

    return fake_client(monkeypatch, end)
