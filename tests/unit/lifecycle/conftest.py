"""Sandboxes that are started for each program."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cold_starts import HOLDINGS, SOON_S, Cgroup, Cgroups

from corral_worker.sandbox import ladder, lifecycle
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.runsc import Runsc


@pytest.fixture
def cgroup(runsc: Runsc) -> Cgroup:
    return Cgroup(runsc.root / "fake" / "pid")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "b"
    directory.mkdir()
    return directory


@pytest.fixture
def sandboxes(runsc: Runsc, cgroup: Cgroup, runs: Path) -> ColdStart:
    return ColdStart(
        runsc=runsc, cgroups=Cgroups(cgroup), runs=runs, holdings=HOLDINGS, start_timeout_s=SOON_S
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give everything that never ends little time."""
    for name in ("_KILL_WITHIN_S", "_DELETE_WITHIN_S", "_EMPTY_WITHIN_S"):
        monkeypatch.setattr(ladder, name, 0.3)
    monkeypatch.setattr(lifecycle, "_REMOVE_WITHIN_S", 0.1)


@pytest.fixture
def _patient(_quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what does end all the time that a slow machine needs."""
    for name in ("_KILL_WITHIN_S", "_EMPTY_WITHIN_S", "_LAST_WORDS_WITHIN_S"):
        monkeypatch.setattr(ladder, name, SOON_S)
