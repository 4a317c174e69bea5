from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from corral_worker.pool.idleness import Idleness


def test_idle_processors_are_what_the_kernel_counted_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 1000 50 0 0 0 0 0\ncpu0 1 2 3 4\n")
    watched = Idleness(stat)

    assert watched.processors() == 0.0
    now += 0.4
    stat.write_text("cpu  10 0 10 1050 60 0 0 0 0 0\n")
    assert watched.processors() == pytest.approx(1.5)


def test_what_was_idle_before_all_wanted_a_processor_is_not_idle_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 1000 50 0 0 0 0 0\n")
    watched = Idleness(stat)
    now += 60.0
    stat.write_text("cpu  10 0 10 12900 50 0 0 0 0 0\n")

    assert watched.processors() == 0.0
    now += 0.2
    stat.write_text("cpu  10 0 10 12910 50 0 0 0 0 0\n")
    assert watched.processors() == pytest.approx(0.5)


def test_no_processor_is_known_to_be_idle_while_the_kernel_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 1000 50 0 0 0 0 0\n")
    watched = Idleness(stat)
    stat.unlink()
    now += 2.0

    assert watched.processors() == 0.0


def test_this_hosts_counters_can_be_read() -> None:
    assert Idleness().processors() >= 0
