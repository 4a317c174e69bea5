"""Makes a directory tree ready to be an image."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from corral_worker.images.errors import ImageBuildError

MOUNT_POINTS: Final = (
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("tmp", 0o1777),
    ("workspace", 0o755),
    ("var/tmp", 0o1777),
    ("home", 0o755),
)
# The host name is the one that sandboxes have.
_HOSTS: Final = "127.0.0.1 localhost corral\n::1 localhost corral\n"
_NAMED: Final = 5
# Times that only tell when a build ran are set to this one, 2000-01-01.
_EPOCH_NS: Final = 946_684_800 * 10**9


def finish_tree(tree: Path, *, began_ns: int) -> None:
    """Give ``tree`` what every sandbox needs, and take away what an image must not hold.

    It gets its empty mount points, and an ``/etc/hosts`` if it has none that says anything.

    What changed since ``began_ns`` (the file system's clock) gets a fixed time.
    Raises :class:`ImageBuildError` if there are devices, sockets or pipes. For a
    worker thread; nobody else may write to the tree.
    """
    tree.chmod(0o755)  # else nobody but its owner could enter "/"
    os.chown(tree, 0, 0)
    for path, mode in MOUNT_POINTS:
        _mount_point(tree, path, mode)
    _name_the_loopback(tree)
    special = [str(path.relative_to(tree)) for path in _walk(tree) if not _tidy(path, began_ns)]
    if special:
        raise ImageBuildError(
            f"an image cannot hold devices, sockets or pipes, but here are {len(special)}: "
            f"{', '.join(sorted(special)[:_NAMED])}. Remove them, then build again"
        )


def _mount_point(tree: Path, path: str, mode: int) -> None:
    *parents, name = path.split("/")
    at = tree
    for parent in parents:
        at = at / parent
        if at.is_symlink() or (at.exists() and not at.is_dir()):
            # Followed, an absolute link would lead out of the tree.
            raise ImageBuildError(
                f"/{at.relative_to(tree)} is not a directory in this image, but the sandbox mounts "
                f"/{path}: make it one, then build again"
            )
        if not at.is_dir():
            at.mkdir()
            at.chmod(0o755)  # whatever the umask
    target = at / name
    if target.is_symlink() or not target.is_dir():
        target.unlink(missing_ok=True)
        target.mkdir()
    # Hidden by the mount anyway.
    for inner in sorted(_walk(target), reverse=True):
        if inner != target:
            _remove(inner)
    os.chown(target, 0, 0)
    target.chmod(mode)


def _name_the_loopback(tree: Path) -> None:
    """Let programs resolve ``localhost``: other runtimes mount this file, and images lack it."""
    etc, hosts = tree / "etc", tree / "etc" / "hosts"
    if etc.is_symlink() or hosts.is_symlink():
        return  # followed, it could lead out of the tree
    if not etc.exists():
        etc.mkdir()
        etc.chmod(0o755)
    if etc.is_dir() and (not hosts.exists() or (hosts.is_file() and not hosts.stat().st_size)):
        hosts.write_text(_HOSTS)
        hosts.chmod(0o644)


def _tidy(path: Path, began_ns: int) -> bool:
    found = path.lstat()
    if not any(kind(found.st_mode) for kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
        return False
    if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        # Dead weight under no_new_privs; without them it is also no setting
        # of the sandbox that keeps a job from becoming root in it.
        path.chmod(found.st_mode & 0o1777)
    if found.st_mtime_ns >= began_ns:
        os.utime(path, ns=(_EPOCH_NS, _EPOCH_NS), follow_symlinks=False)
    return True


def _walk(directory: Path) -> Iterator[Path]:
    yield directory
    for parent, directories, files in os.walk(directory, onerror=_raise):
        for name in (*directories, *files):
            yield Path(parent, name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def _raise(error: OSError) -> None:
    raise error
