"""What a worker owns from its start to its end."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from support.estates import furnish, living, owner_of, sweep, traces

from corral_worker.process.identity import ProcessIdentity
from corral_worker.reaper.claim import Claim
from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost


def test_it_says_who_made_it(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        owner = owner_of(claim)

        assert owner.is_alive
        assert owner.process == ProcessIdentity.of(os.getpid())
        assert owner.cgroup_parent == "/corral"
        assert claim.directory == state_dir / f"w-{claim.worker}"


def test_nobody_else_can_look_into_it(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        made = (state_dir, claim.directory, claim.runsc_root, claim.runs)
        assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
        assert (claim.directory / "owner").stat().st_mode & 0o777 == 0o600


def test_each_has_a_mark_of_its_own(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as one, living(state_dir, cgroups) as two:
        assert one.worker != two.worker


def test_nothing_is_left_of_one_that_was_released(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        (claim.runs / "corral-x").mkdir()

    assert traces(claim, cgroups) == []
    assert cgroups.names() == set()


def test_a_sandbox_that_outlives_its_worker_is_found_by_the_next(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with living(state_dir, cgroups) as claim:
        sandbox = furnish(claim, cgroups)

    assert cgroups.names() == {sandbox, f"corral-{claim.worker}"}
    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1)
    assert traces(claim, cgroups) == []


def test_a_reaper_that_comes_between_making_and_locking_does_no_harm(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DirectoryLock.take
    swept: list[Path] = []

    def take(path: Path, *, shared: bool = False) -> DirectoryLock:
        if len(swept) < 2:
            swept.append(path)
            monkeypatch.setattr(DirectoryLock, "take", real)
            sweep(state_dir, cgroups)
            monkeypatch.setattr(DirectoryLock, "take", take)
        return real(path, shared=shared)

    monkeypatch.setattr(DirectoryLock, "take", take)
    with living(state_dir, cgroups) as claim:
        assert claim.runs.is_dir()
        assert cgroups.beacon(claim.worker).is_dir()

    assert len(swept) == 2
    assert list(state_dir.iterdir()) == []
    assert cgroups.names() == set()


def test_a_directory_that_cannot_be_made_leaves_no_cgroup(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    state_dir.mkdir()
    state_dir.chmod(0o500)
    if os.geteuid() == 0:
        state_dir.rmdir()
        state_dir.touch()

    with pytest.raises(OSError, match="state"):
        Claim.make(state_dir, cgroups)
    assert cgroups.names() == set()


def test_a_mark_that_is_taken_is_its_owners(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "01234567")
    begun = state_dir / "w-01234567"
    begun.mkdir(parents=True)

    with pytest.raises(FileExistsError):
        Claim.make(state_dir, cgroups)
    assert begun.exists()
    assert cgroups.names() == set()
    begun.rmdir()
    with living(state_dir, cgroups) as claim, pytest.raises(CgroupError):
        Claim.make(state_dir, cgroups)
    assert not claim.directory.exists()


def test_an_owner_that_cannot_be_noted_leaves_nothing(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Claim.make(state_dir, cgroups)

    assert list(state_dir.iterdir()) == []
    assert cgroups.names() == set()
