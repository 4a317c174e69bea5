"""One look over the host."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from support.estates import (
    A_MINUTE,
    OF_ITS_WORKER,
    OF_ONE_SANDBOX,
    Start,
    furnish,
    killed,
    living,
    sweep,
    traces,
)

from corral_worker.reaper import removal
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost


def test_one_thing_that_cannot_be_removed_does_not_keep_the_others(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_DIES_WITHIN_S", 0.02)
    dead = killed(state_dir, cgroups)
    busy, free = furnish(dead, cgroups, 1), furnish(dead, cgroups, 2)
    (cgroups._hierarchies["memory"] / "corral" / busy / "held").touch()

    found = sweep(state_dir, cgroups)

    assert found.dead == msgspec.structs.replace(
        OF_ONE_SANDBOX + OF_ONE_SANDBOX + OF_ITS_WORKER, cgroup=1
    )
    assert [doubt.name for doubt in found.left] == [f"/corral/{busy}"]
    assert cgroups.names() == {busy, f"corral-{dead.worker}"}
    (cgroups._hierarchies["memory"] / "corral" / busy / "held").unlink()
    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1)
    assert cgroups.names() == set()
    assert free not in str(traces(dead, cgroups))


def test_a_survey_tells_what_a_sweep_would_remove_and_removes_nothing(
    state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    furnish(dead, cgroups)
    process = start(f"--root={dead.runsc_root}")
    with living(state_dir, cgroups) as claim:
        stray = furnish(claim, cgroups)
        held = furnish(claim, cgroups, 2)
        sweeper = Sweeper(state_dir=state_dir, cgroups=cgroups, own=(claim.worker, claim.directory))

        surveys = [sweeper.survey(frozenset({held}), Deadline(A_MINUTE)) for _ in range(3)]

        assert surveys[0] == surveys[1] == surveys[2]
        kinds = Counts.of(*(trace.kind for trace in surveys[0].dead))
        assert kinds == OF_ONE_SANDBOX + OF_ITS_WORKER + Counts(process=1)
        assert {trace.sandbox for trace in surveys[0].strays} == {stray}
        assert process.poll() is None
        assert sweeper.sweep(frozenset({held}), Deadline(A_MINUTE)).dead == kinds


def test_without_time_nothing_is_removed_and_that_is_told(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    sweeper = Sweeper(state_dir=state_dir, cgroups=cgroups, own=None)

    assert sweeper.sweep(frozenset(), Deadline(0)) == Sweep(complete=False)
    assert dead.directory.exists()


def test_of_two_reapers_one_removes_and_counts(state_dir: Path, cgroups: CgroupHost) -> None:
    for number in range(8):
        furnish(killed(state_dir, cgroups), cgroups, number)
    found: list[Sweep] = []
    begin = threading.Barrier(2)

    def reaps() -> None:
        begin.wait(timeout=30)
        found.append(sweep(state_dir, cgroups))

    threads = [threading.Thread(target=reaps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # What one had locked at that moment, the other took for alive.
    found.append(sweep(state_dir, cgroups))

    total = sum((each.dead for each in found), Counts())
    assert total == Counts(cgroup=8, state_file=16, bundle=8, directory=8)
    assert [each.left for each in found] == [(), (), ()]
