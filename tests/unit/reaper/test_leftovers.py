"""What a dead worker left is removed, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from support.estates import (
    HIERARCHIES,
    OF_ITS_WORKER,
    OF_ONE_SANDBOX,
    Start,
    cgroup_host,
    furnish,
    killed,
    living,
    locks,
    owner_of,
    sweep,
    traces,
    write_owner,
)

from corral_worker.process.identity import ProcessIdentity
from corral_worker.reaper.claim import Claim
from corral_worker.reaper.sweep import Sweep
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost


def test_all_that_one_left_is_removed_and_counted_by_kind(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    furnish(dead, cgroups, 1)
    furnish(dead, cgroups, 2)

    found = sweep(state_dir, cgroups)

    assert found.dead == OF_ONE_SANDBOX + OF_ONE_SANDBOX + OF_ITS_WORKER
    assert (found.left, found.strays, found.complete) == ((), (), True)
    assert traces(dead, cgroups) == []


@pytest.mark.parametrize("hierarchy", HIERARCHIES)
def test_a_cgroup_is_found_in_whatever_hierarchy_it_is_left(
    state_dir: Path, cgroups: CgroupHost, hierarchy: str
) -> None:
    dead = killed(state_dir, cgroups)
    left = cgroups._hierarchies[hierarchy] / f"corral/corral-{dead.worker}-000007"
    left.mkdir(parents=True)

    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1, directory=1)
    assert not left.exists()


def test_its_cgroups_are_known_without_its_directory(tmp_path: Path, cgroups: CgroupHost) -> None:
    dead = killed(tmp_path / "elsewhere", cgroups)
    furnish(dead, cgroups)

    assert sweep(tmp_path / "here", cgroups).dead == Counts(cgroup=1)
    assert cgroups.names() == set()


def test_its_directory_tells_under_which_other_parent_its_cgroups_are(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    before = cgroup_host(tmp_path / "cg", "/before/it/was/renamed")
    dead = killed(state_dir, before)
    furnish(dead, before)

    assert sweep(state_dir, cgroups).dead == OF_ONE_SANDBOX + OF_ITS_WORKER
    assert before.names() == set()


def test_after_a_boot_no_process_is_the_one_it_looks_like(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    like_this_one = ProcessIdentity.of(os.getpid())
    assert like_this_one is not None
    owner = owner_of(dead)
    write_owner(dead, msgspec.structs.replace(owner, boot_id="before", process=like_this_one))

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER


@pytest.mark.parametrize("made", [(), ("owner",)])
def test_a_directory_that_was_only_begun_is_removed(
    state_dir: Path, cgroups: CgroupHost, made: tuple[str, ...]
) -> None:
    begun = state_dir / "w-01234567"
    begun.mkdir(parents=True, mode=0o700)
    for name in made:
        (begun / name).touch()

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert not begun.exists()


def test_links_in_its_directory_are_removed_and_not_followed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    dead = killed(state_dir, cgroups)
    for place in (dead.runs, dead.runsc_root, dead.directory):
        (place / "link").symlink_to(precious)
    (dead.runs / "corral-x").mkdir()
    (dead.runs / "corral-x" / "rootfs").symlink_to(precious)

    sweep(state_dir, cgroups)

    assert not dead.directory.exists()
    assert (precious / "file").exists()


def test_parts_of_its_directory_that_are_links_are_not_followed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    dead = killed(state_dir, cgroups)
    dead.runs.rmdir()
    dead.runs.symlink_to(precious)

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert (precious / "file").exists()


def test_what_is_not_named_after_a_worker_is_not_looked_at(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    others = ("images", "w-", "w-0123456", "w-012345678", "w-XXXXXXXX", "x-01234567")
    for name in others:
        (state_dir / name).mkdir(parents=True)
    for name in ("corral-test-1", "corral-0123", "system.slice"):
        (cgroups._hierarchies["memory"] / "corral" / name).mkdir(parents=True)

    assert sweep(state_dir, cgroups) == Sweep()
    assert sorted(path.name for path in state_dir.iterdir()) == sorted(others)


@pytest.mark.parametrize("same_directory", [True, False])
@pytest.mark.parametrize("same_parent", [True, False])
def test_one_that_lives_is_not_touched(
    tmp_path: Path, cgroups: CgroupHost, *, same_directory: bool, same_parent: bool
) -> None:
    theirs = cgroups if same_parent else cgroup_host(tmp_path / "cg", "/theirs")
    place = tmp_path / ("state" if same_directory else "elsewhere")
    with living(place, theirs) as claim:
        furnish(claim, theirs)
        before = traces(claim, theirs)

        assert sweep(tmp_path / "state", cgroups) == Sweep()
        assert traces(claim, theirs) == before


def test_one_lock_of_two_is_enough_to_live(state_dir: Path, cgroups: CgroupHost) -> None:
    for lost in (0, 1):
        claim = Claim.make(state_dir, cgroups)
        furnish(claim, cgroups)
        locks(claim)[lost].close()

        sweep(state_dir, cgroups)

        assert traces(claim, cgroups) != []
        locks(claim)[1 - lost].close()
        owner = owner_of(claim)
        write_owner(claim, msgspec.structs.replace(owner, boot_id="before"))
        sweep(state_dir, cgroups)
        assert traces(claim, cgroups) == []


def test_processes_that_work_with_a_dead_workers_state_are_killed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    with living(tmp_path / "other", cgroups) as lives:
        theirs = [
            start(f"--root={dead.runsc_root}", "list"),
            start("--log=x", f"--root={dead.runsc_root}", "run", f"corral-{dead.worker}-000001"),
        ]
        others = [
            start(f"--root={lives.runsc_root}", "run", f"corral-{lives.worker}-000001"),
            start("run", f"corral-{dead.worker}-000001"),
            start(f"--root={dead.directory}"),
            start(f"--root={dead.runsc_root}/x"),
            start(f"x--root={dead.runsc_root}"),
        ]

        assert sweep(state_dir, cgroups).dead == Counts(process=2, directory=1)

        assert [process.wait() for process in theirs] == [-9, -9]
        assert [process.poll() for process in others] == [None] * len(others)


def test_a_process_older_than_the_worker_was_not_the_workers(
    state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    older = start(f"--root={dead.runsc_root}")
    owner = owner_of(dead)
    later = msgspec.structs.replace(owner.process, started=2**62)
    write_owner(dead, msgspec.structs.replace(owner, process=later))

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert older.poll() is None
