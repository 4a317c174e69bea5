"""Sandboxes that are started for each program."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from support.cold_starts import HOLDINGS, SOON_S, Cgroup, Cgroups, GiveUpSoon

from corral_worker.sandbox import ladder, removal
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
def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> GiveUpSoon:
    for name in ("_KILL_WITHIN_S", "_DELETE_WITHIN_S", "_EMPTY_WITHIN_S", "_LAST_WORDS_WITHIN_S"):
        monkeypatch.setattr(ladder, name, SOON_S)
    for name in ("_DELETE_WITHIN_S", "_REMOVE_WITHIN_S"):
        monkeypatch.setattr(removal, name, SOON_S)

    def shorten(*bounds: str, of: ModuleType = ladder) -> None:
        for name in bounds:
            monkeypatch.setattr(of, name, 0.3)

    return shorten
