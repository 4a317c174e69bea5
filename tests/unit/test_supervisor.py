from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from corral import ErrWorkerLost, Fault, Job, Outcome, Policy, Result
from corral_worker.executor.executor import Attempt, Executor, Image, Runtime
from corral_worker.executor.supervisor import Supervisor
from corral_worker.sandbox.lifecycle import Report
from corral_worker.sandbox.stop import Stop

SOON_S = 20
DONE = Result(outcome=Outcome.EXITED, exit_code=0)


class NoImages:
    async def resolve(self, reference: str) -> Image:
        raise AssertionError(reference)


class NoSandboxes:
    async def run(self, *arguments: object) -> Report:
        raise AssertionError(arguments)


class Scripted(Executor):
    """Does with each attempt what its job's ``argv[0]`` names, and notes what it saw."""

    def __init__(self) -> None:
        super().__init__(
            policy_of=lambda _: Policy(),
            images=NoImages(),
            sandboxes=NoSandboxes(),
            runtime=Runtime(runsc_version="1", platform="systrap"),
        )
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.most_at_once = 0
        self.changed = anyio.Event()
        self.release = anyio.Event()

    async def execute(self, attempt: Attempt, stop: Stop) -> Result:
        if stop.cause == "cancelled":
            return Result(outcome=Outcome.CANCELLED)
        if stop.cause is not None:
            raise ErrWorkerLost("stopped")
        self.begun.append(attempt.job_id)
        self.most_at_once = max(self.most_at_once, len(self.begun) - len(self.ended))
        self._tell()
        try:
            return await self._act(attempt.job.argv[0], stop)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.ended.append(attempt.job_id)
            self._tell()

    async def _act(self, what: str, stop: Stop) -> Result:
        match what:
            case "wait":
                await self.release.wait()
            case "until stopped":
                await stop.wait()
                return Result(outcome=Outcome.CANCELLED)
            case "break":
                raise Fault("broke", retry_safety="started")
            case "crash":
                raise LookupError("a bug")
            case _:
                await anyio.lowlevel.checkpoint()
        return DONE

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(SOON_S):
            while not holds():
                await self.changed.wait()


def attempt(what: str, number: int = 1) -> Attempt:
    return Attempt(
        job=Job(argv=(what,)),
        job_id=f"acme:{number}",
        tenant="acme",
        number=1,
        enqueued_at=dt.datetime.now(dt.UTC),
    )


@pytest.fixture
def executor() -> Scripted:
    return Scripted()


async def test_an_attempt_ends_with_its_result(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        running = supervisor.start(attempt("finish"))

        assert await running.ended() == DONE
        assert await running.ended() == DONE
        await supervisor.idle()


async def test_no_more_attempts_run_at_one_time_than_there_are_slots(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=3) as supervisor:
        running = [supervisor.start(attempt("wait", number)) for number in range(10)]
        await executor.until(lambda: len(executor.begun) == 3)
        await anyio.wait_all_tasks_blocked()
        assert len(executor.begun) == 3
        executor.release.set()

        assert [await one.ended() for one in running] == [DONE] * 10

    assert executor.most_at_once == 3
    assert len(executor.ended) == 10


async def test_a_stop_while_it_waits_for_a_slot_needs_none(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        first = supervisor.start(attempt("wait", 1))
        await executor.until(lambda: executor.begun == ["acme:1"])
        second = supervisor.start(attempt("wait", 2))
        third = supervisor.start(attempt("finish", 3))
        await anyio.wait_all_tasks_blocked()

        second.stop("cancelled")
        assert await second.ended() == Result(outcome=Outcome.CANCELLED)
        assert executor.begun == ["acme:1"]

        executor.release.set()
        assert await first.ended() == DONE
        assert await third.ended() == DONE

    assert executor.most_at_once == 1


async def test_a_slot_that_a_stop_gave_up_is_not_freed_twice(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        supervisor.start(attempt("wait", 1))
        await executor.until(lambda: executor.begun == ["acme:1"])
        for number in range(2, 6):
            stopped = supervisor.start(attempt("wait", number))
            stopped.stop("cancelled")
            await stopped.ended()
        waiting = [supervisor.start(attempt("finish", number)) for number in range(6, 9)]
        await anyio.wait_all_tasks_blocked()
        assert executor.begun == ["acme:1"]
        executor.release.set()
        assert [await one.ended() for one in waiting] == [DONE] * 3

    assert executor.most_at_once == 1


async def test_a_stop_reaches_what_runs(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        running = supervisor.start(attempt("until stopped"))
        await executor.until(lambda: executor.begun == ["acme:1"])

        running.stop("cancelled")

        assert await running.ended() == Result(outcome=Outcome.CANCELLED)


async def test_all_can_be_stopped_those_that_run_and_those_that_wait(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=2) as supervisor:
        running = [supervisor.start(attempt("until stopped", number)) for number in range(5)]
        await executor.until(lambda: len(executor.begun) == 2)

        supervisor.stop_all("shutdown")
        await supervisor.idle()

        endings = [await one.ended() for one in running]
    assert [ending for ending in endings if isinstance(ending, Result)] == [
        Result(outcome=Outcome.CANCELLED)
    ] * 2
    assert sum(isinstance(ending, ErrWorkerLost) for ending in endings) == 3


async def test_an_error_is_handed_over_and_not_raised(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        ending = await supervisor.start(attempt("break")).ended()

        assert isinstance(ending, Fault)
        assert (str(ending), ending.retry_safety) == ("broke", "started")


async def test_a_crash_becomes_a_fault_and_the_next_job_runs(executor: Scripted) -> None:
    with capture_logs() as logs:
        async with Supervisor.open(executor, slots=1) as supervisor:
            crashed = await supervisor.start(attempt("crash", 1)).ended()
            after = await supervisor.start(attempt("finish", 2)).ended()

    assert isinstance(crashed, Fault)
    assert (crashed.retry_safety, crashed.retryable) == ("unknown", False)
    assert "LookupError" in crashed.message
    assert "a bug" not in crashed.message
    assert after == DONE
    assert [(entry["event"], entry["job_id"]) for entry in logs] == [("job.crashed", "acme:1")]


async def test_to_give_up_waiting_leaves_the_attempt_running(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        running = supervisor.start(attempt("wait"))
        with anyio.move_on_after(0.01) as scope:
            await running.ended()
        assert scope.cancelled_caught
        executor.release.set()

        assert await running.ended() == DONE


async def test_the_supervisor_waits_for_what_runs_before_it_closes(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=2) as supervisor:
        for number in range(4):
            supervisor.start(attempt("finish", number))

    assert len(executor.ended) == 4


async def test_cancellation_ends_what_runs_before_it_is_passed_on(executor: Scripted) -> None:
    with anyio.CancelScope() as scope:
        async with Supervisor.open(executor, slots=2) as supervisor:
            running = [supervisor.start(attempt("wait", number)) for number in range(5)]
            await executor.until(lambda: len(executor.begun) == 2)
            scope.cancel()

    assert sorted(executor.ended) == sorted(executor.begun)
    assert len(executor.begun) == 2
    for one in running:
        ending = await one.ended()
        assert isinstance(ending, Fault)
        assert ending.retry_safety == "unknown"


async def test_an_idle_supervisor_is_idle_at_once(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=1) as supervisor:
        with anyio.fail_after(SOON_S):
            await supervisor.idle()


async def test_idle_is_when_the_last_one_is_over(executor: Scripted) -> None:
    async with Supervisor.open(executor, slots=4) as supervisor:
        for number in range(4):
            supervisor.start(attempt("wait", number))
        await executor.until(lambda: len(executor.begun) == 4)
        with anyio.move_on_after(0.01) as scope:
            await supervisor.idle()
        assert scope.cancelled_caught
        executor.release.set()

        with anyio.fail_after(SOON_S):
            await supervisor.idle()

    assert len(executor.ended) == 4
