from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from corral_worker.pool.ways import BEST_FIRST, Failure, Ways
from corral_worker.sandbox.runsc import Runsc

BAD = [Failure(way="control_socket", why="no such method")]


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def installed(runsc: Runsc, tmp_path: Path) -> Runsc:
    """A runsc that may be replaced."""
    binary = tmp_path / "runsc"
    shutil.copy(runsc.binary, binary)
    return Runsc(binary=binary, root=runsc.root, platform="systrap")


def replace(runsc: Runsc) -> None:
    new = runsc.binary.with_name("new")
    shutil.copy(runsc.binary, new)
    new.replace(runsc.binary)


def test_at_first_all_are_tried_the_fastest_before_the_others(installed: Runsc) -> None:
    assert list(Ways(installed).to_try()) == ["control_socket", "command_line"]


def test_one_that_worked_is_the_only_one_from_then_on(installed: Runsc) -> None:
    ways = Ways(installed)
    with capture_logs() as logs:
        ways.worked("control_socket", [])

    assert list(ways.to_try()) == ["control_socket"]
    assert logs == []


def test_another_runsc_is_tried_anew(installed: Runsc) -> None:
    ways = Ways(installed)
    ways.worked("control_socket", [])
    replace(installed)

    assert ways.to_try() == BEST_FIRST


def test_a_slower_way_is_told_once_with_what_failed_and_what_to_do(installed: Runsc) -> None:
    ways = Ways(installed)
    with capture_logs() as logs:
        for _ in range(3):
            ways.worked("command_line", BAD)

    assert list(ways.to_try()) == ["command_line"]
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("pool.slower_way", "warning")
    assert line["failed"] == {"control_socket": "no such method"}
    assert line["uses"] == "command_line"
    assert "use a runsc" in line["detail"]


def test_a_better_way_that_failed_is_tried_again_later_for_it_may_have_been_the_host(
    installed: Runsc,
) -> None:
    clock = Clock()
    ways = Ways(installed, clock)
    ways.worked("command_line", BAD)
    clock.now += 601

    assert ways.to_try() == BEST_FIRST
    ways.worked("command_line", BAD)
    assert list(ways.to_try()) == ["command_line"]

    clock.now += 601
    with capture_logs() as logs:
        ways.worked("control_socket", [])
    assert list(ways.to_try()) == ["control_socket"]
    assert [line["event"] for line in logs] == ["pool.way"]
