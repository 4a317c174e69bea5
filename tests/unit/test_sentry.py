"""The process that a sandbox is: found among those of its cgroup, stopped and continued."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from corral_worker.sandbox.cgroup import SandboxCgroup
from corral_worker.sandbox.sentry import Sentry

SOON_S = 20.0


class Cgroup:
    """Tells, each time it is asked, the next of what it was given, and in the end the last."""

    def __init__(self, *answers: set[int]) -> None:
        self._answers = list(answers)

    def processes(self) -> set[int]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def sentry_of(*answers: set[int]) -> Sentry:
    return Sentry(cast("SandboxCgroup", Cgroup(*answers)))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def assert_comes_to(pid: int, states: str) -> None:
    until = time.monotonic() + SOON_S
    while state(pid) not in states:
        assert time.monotonic() < until, state(pid)
        time.sleep(0.001)


@pytest.fixture
def family() -> Iterator[Sequence[int]]:
    """Yield the pids of a process and of its child."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        yield parent.pid, child
        os.killpg(parent.pid, 9)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len([*Path("/proc/self/fd").iterdir()])
    yield
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_it_is_the_one_whose_parent_is_elsewhere_and_it_alone_is_stopped(
    family: Sequence[int],
) -> None:
    parent, child = family

    with sentry_of({child, parent}) as sentry:
        sentry.find()
        sentry.stop()
        assert_comes_to(parent, "T")
        assert state(child) != "T"
        sentry.go_on()
        assert_comes_to(parent, "RS")


def test_what_is_told_twice_is_done_once(
    family: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(
        "signal.pidfd_send_signal", lambda _descriptor, number: sent.append(number.name)
    )

    with sentry_of(set(family)) as sentry:
        sentry.find()
        sentry.go_on()
        for _ in range(2):
            sentry.stop()
            sentry.stop()
            sentry.go_on()
            sentry.go_on()

    assert sent == ["SIGSTOP", "SIGCONT"] * 2


def test_before_it_is_found_and_after_its_block_it_is_left_alone(family: Sequence[int]) -> None:
    with sentry_of(set(family)) as sentry:
        sentry.stop()
        sentry.find()
    sentry.stop()

    assert state(family[0]) != "T"


def test_one_that_is_gone_is_no_error_whenever_it_went() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        with sentry_of({process.pid}) as sentry:
            sentry.find()
            process.kill()
            process.wait()
            sentry.stop()
            sentry.go_on()
        with sentry_of({process.pid}) as sentry:
            sentry.find()
            sentry.stop()


def test_a_number_that_is_another_processs_by_now_is_left_alone(family: Sequence[int]) -> None:
    with sentry_of(set(family), set()) as sentry:
        sentry.find()
        sentry.stop()

    assert state(family[0]) != "T"


@pytest.mark.parametrize("others", [{os.getpid()}, {0, os.getpid()}])
def test_where_several_could_be_it_none_is(family: Sequence[int], others: set[int]) -> None:
    # The parent of this process is not among them, nor is that of the child.
    with sentry_of({family[1], *others}) as sentry:
        sentry.find()
        sentry.stop()

    assert state(family[1]) != "T"


def test_a_host_without_a_descriptor_for_it_says_so_and_nothing_is_stopped(
    family: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with sentry_of(set(family)) as sentry:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                sentry.find()
        sentry.stop()

    assert state(family[0]) != "T"
