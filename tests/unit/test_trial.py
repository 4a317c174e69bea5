"""Whether a host still starts sandboxes: when that is tried, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from structlog.testing import capture_logs

from corral import ErrSandboxCreationFailed
from corral_worker.admission import trial as trial_module
from corral_worker.admission.trial import Trial

SOON_S = 20.0


class Host:
    """One whose sandboxes start, or fail as they are told to."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.tried = 0

    async def start(self) -> None:
        self.tried += 1
        if self.failure is not None:
            raise self.failure


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BETWEEN_S", "_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(trial_module, name, 0.0)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(SOON_S):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(ErrSandboxCreationFailed("refused", detail="no cgroup"), id="fault"),
        pytest.param(TimeoutError(), id="too late"),
        pytest.param(ValueError("a mistake of ours"), id="mistake"),
    ],
)
async def test_a_host_that_is_suspected_and_fails_is_tried_until_it_works(
    failure: Exception,
) -> None:
    host, changes = Host(), list[bool]()
    trial = Trial(host.start)
    with capture_logs() as log:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trial.run, lambda: changes.append(trial.works))
            host.failure = failure
            trial.suspect()
            await until(lambda: host.tried >= 3)
            assert not trial.works
            host.failure = None
            await until(lambda: trial.works)
            tasks.cancel_scope.cancel()

    assert changes == [False, True]
    assert [entry["event"] for entry in log] == ["worker.trial_failed"], "once, not at each trial"


async def test_a_host_that_is_suspected_and_works_goes_on_as_it_was() -> None:
    host, changes = Host(), list[bool]()
    trial = Trial(host.start)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trial.run, lambda: changes.append(trial.works))
        trial.suspect()
        await until(lambda: host.tried == 1)
        trial.suspect()
        await until(lambda: host.tried == 2)
        tasks.cancel_scope.cancel()

    assert trial.works
    assert not changes


async def test_jobs_that_fail_one_after_the_other_are_tried_for_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_module, "_BETWEEN_S", 3600.0)
    host = Host()
    trial = Trial(host.start)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trial.run, lambda: None)
        trial.suspect()
        await until(lambda: host.tried == 1)
        trial.suspect()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert host.tried == 1


async def test_nothing_is_tried_on_a_host_that_nobody_suspects() -> None:
    host = Host()
    trial = Trial(host.start)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trial.run, lambda: None)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert host.tried == 0
