"""The default image ``base``, but for its package."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral_worker.images.base import _lay_out
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.tree import finish_tree

ROOTS_OWN = {"root"}


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """What is in the package, with the modes that it has there."""
    directory = tmp_path / "unpacked"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "busybox").write_bytes(b"\x7fELF")
    (directory / "bin" / "busybox").chmod(0o755)
    return directory


@pytest.fixture
def _private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_private_umask")
@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to change")
def test_under_any_umask_a_job_may_enter_all_but_roots_home_and_read_every_file(
    unpacked: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"

    _lay_out(unpacked, tree)
    finish_tree(tree, began_ns=tree.stat().st_mtime_ns)

    found = [
        path
        for path in (tree, *tree.rglob("*"))
        if not path.is_symlink() and str(path.relative_to(tree)) not in ROOTS_OWN
    ]
    closed_directories = [path for path in found if path.is_dir() and mode(path) & 0o005 != 0o005]
    closed_files = [path for path in found if path.is_file() and not mode(path) & 0o004]
    assert (closed_directories, closed_files) == ([], [])
    assert {mode(tree / name) for name in (".", "usr", "usr/bin", "etc", "var")} == {0o755}
    assert {mode(tree / "etc" / name) for name in ("passwd", "group")} == {0o644}
    assert mode(tree / "usr" / "bin" / "busybox") == 0o755


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_package_without_busybox_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="holds no busybox"):
        _lay_out(tmp_path / "empty", tmp_path / "tree")
