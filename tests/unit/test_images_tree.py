"""What every image has, and what none may have."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.tree import MOUNT_POINTS, finish_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to change")

LONG_AGO_NS = 1_600_000_000 * 10**9


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o700)
    return tree


def began_ns(tree: Path) -> int:
    return tree.stat().st_mtime_ns


def test_every_tree_gets_empty_mount_points(tree: Path) -> None:
    (tree / "home" / "user").mkdir(parents=True)
    (tree / "home" / "user" / "file").touch()

    finish_tree(tree, began_ns=began_ns(tree))

    for path, mode in MOUNT_POINTS:
        assert list((tree / path).iterdir()) == []
        assert mode == stat.S_IMODE((tree / path).stat().st_mode)
    assert stat.S_IMODE(tree.stat().st_mode) == 0o755


def test_a_mount_point_that_is_a_link_becomes_a_directory_and_its_target_is_untouched(
    tree: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tree / "tmp").symlink_to(outside)
    (tree / "home").mkdir()
    (tree / "home" / "link").symlink_to(outside)

    finish_tree(tree, began_ns=began_ns(tree))

    assert (tree / "tmp").is_dir()
    assert not (tree / "tmp").is_symlink()
    assert (outside / "file").exists()


def test_the_loopback_has_a_name(tree: Path) -> None:
    finish_tree(tree, began_ns=began_ns(tree))

    hosts = tree / "etc" / "hosts"
    assert "127.0.0.1 localhost" in hosts.read_text()
    assert stat.S_IMODE(hosts.stat().st_mode) == 0o644


@pytest.mark.parametrize(("had", "has"), [("", "localhost"), ("10.0.0.1 own\n", "10.0.0.1 own\n")])
def test_only_a_hosts_file_that_says_nothing_is_replaced(tree: Path, had: str, has: str) -> None:
    hosts = tree / "etc" / "hosts"
    hosts.parent.mkdir()
    hosts.write_text(had)

    finish_tree(tree, began_ns=began_ns(tree))

    assert has in hosts.read_text()
    assert not had or hosts.read_text() == had


@pytest.mark.parametrize("link", ["etc", "etc/hosts"])
def test_a_hosts_file_behind_a_link_is_left_alone(tree: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / link).parent.mkdir(exist_ok=True)
    (tree / link).symlink_to(outside / "new" if link == "etc/hosts" else outside)

    finish_tree(tree, began_ns=began_ns(tree))

    assert list(outside.iterdir()) == []


def test_a_link_above_a_mount_point_is_refused_and_never_followed(
    tree: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "var").symlink_to(outside)

    with pytest.raises(ImageBuildError, match="/var is not a directory"):
        finish_tree(tree, began_ns=began_ns(tree))

    assert list(outside.iterdir()) == []


def test_devices_sockets_and_pipes_are_refused_except_below_mount_points(tree: Path) -> None:
    (tree / "dev").mkdir()
    os.mknod(tree / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    finish_tree(tree, began_ns=began_ns(tree))

    (tree / "opt").mkdir()
    os.mkfifo(tree / "opt" / "pipe")
    os.mknod(tree / "opt" / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    with pytest.raises(ImageBuildError, match=r"here are 2: opt/disk, opt/pipe\."):
        finish_tree(tree, began_ns=began_ns(tree))


def test_files_lose_setuid_and_setgid_and_keep_owner_and_mode(tree: Path) -> None:
    program = tree / "su"
    program.touch()
    os.chown(program, 7, 8)
    program.chmod(0o6751)
    shared = tree / "shared"
    shared.mkdir()
    shared.chmod(0o2775)

    finish_tree(tree, began_ns=began_ns(tree))

    found = program.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o751)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2775


def test_only_times_of_the_build_itself_are_replaced(tree: Path) -> None:
    old, new, link = tree / "old", tree / "new", tree / "link"
    old.touch()
    os.utime(old, ns=(LONG_AGO_NS, LONG_AGO_NS))
    began = began_ns(tree)
    new.touch()
    link.symlink_to("old")

    finish_tree(tree, began_ns=began)

    assert old.stat().st_mtime_ns == LONG_AGO_NS
    assert new.stat().st_mtime_ns == link.lstat().st_mtime_ns == tree.stat().st_mtime_ns
    assert new.stat().st_mtime_ns < LONG_AGO_NS
