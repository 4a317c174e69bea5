"""Temporary directories outlive nobody, and nobody takes those of the living."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.temporary import TemporaryDirectories
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost


def found(place: Path) -> list[str]:
    return [lock.path.name for _, lock in TemporaryDirectories(place).abandoned(shared=True)]


def swept(place: Path) -> Sweep:
    mount = f"1 2 0:3 / {place}/cgroups rw - cgroup2 cgroup2 rw\n"
    sweeper = Sweeper(
        state_dir=place / "state",
        cgroups=CgroupHost("/corral", mountinfo=mount, membership="0::/\n"),
        own=None,
        temporary=TemporaryDirectories(place),
    )
    return sweeper.sweep(frozenset(), Deadline(60.0))


def test_one_that_is_in_use_is_nobody_elses(tmp_path: Path) -> None:
    with TemporaryDirectories(tmp_path).make() as made:
        (made / "file").touch()
        assert found(tmp_path) == []
        assert swept(tmp_path).dead == Counts()
        assert (made / "file").exists()

    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_removed_and_counted(tmp_path: Path) -> None:
    left = tmp_path / "corral-tmp-0123abcd"
    (left / "deep" / "er").mkdir(parents=True)
    (left / "file").touch()
    (left / "link").symlink_to("/etc")

    assert found(tmp_path) == [left.name]
    assert swept(tmp_path).dead == Counts(directory=1)
    assert not left.exists()
    assert Path("/etc").is_dir()


@pytest.mark.parametrize("name", ["corral-tmp-0123abc", "corral-tmp-0123abcde", "corral-0123abcd"])
def test_what_has_another_name_is_another_programs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    assert found(tmp_path) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "corral-tmp-0123abcd").symlink_to(tmp_path / "theirs")

    assert swept(tmp_path).dead == Counts()
    assert (tmp_path / "theirs").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_what_another_user_made_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "corral-tmp-0123abcd"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)

    assert swept(tmp_path).dead == Counts()
    assert theirs.exists()


def test_a_reaper_that_comes_between_making_and_locking_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = DirectoryLock.take
    made: list[Path] = []

    def late(path: Path, *, shared: bool = False) -> DirectoryLock:
        made.append(path)
        if len(made) == 1:
            path.rmdir()
        return take(path, shared=shared)

    monkeypatch.setattr(DirectoryLock, "take", late)
    with TemporaryDirectories(tmp_path).make() as path:
        assert path.is_dir()

    assert len(set(made)) == 2
    assert list(tmp_path.iterdir()) == []
