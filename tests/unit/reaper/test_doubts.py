"""What is left alone, for it cannot be told whether its worker lives."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from support.estates import furnish, gives_up_its_locks, killed, sweep

from corral_worker.reaper.claim import Claim
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost


def reason(state_dir: Path, cgroups: CgroupHost) -> str:
    found = sweep(state_dir, cgroups)
    assert found.removed == Counts()
    (doubt,) = found.left
    return doubt.reason


def test_a_process_that_runs_without_its_lock(state_dir: Path, cgroups: CgroupHost) -> None:
    claim = Claim.make(state_dir, cgroups)
    furnish(claim, cgroups)
    gives_up_its_locks(claim)

    assert f"its process {os.getpid()} runs" in reason(state_dir, cgroups)


def test_a_link_in_place_of_a_directory(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    (tmp_path / "precious" / "b" / "file").mkdir(parents=True)
    state_dir.mkdir()
    (state_dir / "w-01234567").symlink_to(tmp_path / "precious")

    assert "is not a worker's" in reason(state_dir, cgroups)
    assert (tmp_path / "precious" / "b" / "file").exists()


def test_a_file_in_place_of_a_directory(state_dir: Path, cgroups: CgroupHost) -> None:
    state_dir.mkdir()
    (state_dir / "w-01234567").touch()

    assert "is not a worker's" in reason(state_dir, cgroups)


def test_a_file_system_without_flock(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    dead = killed(state_dir, cgroups)
    monkeypatch.setattr(fcntl, "flock", flock)

    assert "cannot be locked by flock(2)" in reason(state_dir, cgroups)
    assert dead.directory.exists()
    with pytest.raises(OSError, match=r"cannot be locked by flock\(2\)") as raised:
        Claim.make(state_dir, cgroups)
    assert raised.value.filename
    assert cgroups.names() == {f"corral-{dead.worker}"}


def test_a_directory_that_others_may_write_to(state_dir: Path, cgroups: CgroupHost) -> None:
    killed(state_dir, cgroups).directory.chmod(0o777)

    assert "another user" in reason(state_dir, cgroups)


def test_a_directory_of_another_user(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(state_dir, cgroups)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert "another user" in reason(state_dir, cgroups)


OWNER_BELOW = (
    b'{"process":{"pid":1,"started":1},"boot_id":"x","cgroup_parent":"%s",'
    b'"created_at":"2030-01-01T00:00:00Z"}'
)


@pytest.mark.parametrize(
    "owner",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"process":{"pid":1,"started":1}}',
        OWNER_BELOW % b"/../..",
        OWNER_BELOW % b"delegated",
        OWNER_BELOW % b"/corral" + b"x",
        None,
    ],
)
def test_a_directory_with_content_that_does_not_say_whose_it_is(
    state_dir: Path, cgroups: CgroupHost, owner: bytes | None
) -> None:
    dead = killed(state_dir, cgroups)
    (dead.directory / "owner").unlink()
    if owner is not None:
        (dead.directory / "owner").write_bytes(owner)

    assert reason(state_dir, cgroups) == "does not say who made it"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/")])
def test_an_owner_that_is_no_file(state_dir: Path, cgroups: CgroupHost, make: object) -> None:
    dead = killed(state_dir, cgroups)
    (dead.directory / "owner").unlink()
    assert callable(make)
    make(dead.directory / "owner")

    assert reason(state_dir, cgroups) == "does not say who made it"


def test_cgroups_of_a_worker_of_which_nothing_else_is_known(
    tmp_path: Path, cgroups: CgroupHost
) -> None:
    dead = killed(tmp_path / "elsewhere", cgroups)
    furnish(dead, cgroups)
    cgroups.beacon(dead.worker).rmdir()

    assert "nothing says whether" in reason(tmp_path / "here", cgroups)
    assert cgroups.names() != set()
