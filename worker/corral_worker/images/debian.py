"""Images from Debian packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import anyio.to_thread

from corral_worker.images.apt import AptSource, HostApt
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.recipe import DebianPackages
from corral_worker.images.tool import Tool

_MMDEBSTRAP: Final = Tool("mmdebstrap", package="mmdebstrap")
_DEBOOTSTRAP: Final = Tool("debootstrap", package="debootstrap")
_DEADLINE_S: Final = 900.0
# Both tools mount file systems of the host into the tree and start programs of
# their own. In namespaces of their own, the mounts are never seen outside, and
# everything ends when the first process does.
_ISOLATED: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
# Without it Debian 12 pulls in all of Perl, 50 MB, to merge /usr.
_MERGED_USR: Final = Path("/usr/share/mmdebstrap/hooks/maybe-merged-usr")
_SHADOW_DAY: Final = "10957"  # days; the field would tell when the build ran
_EMPTIED: Final = (
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
)
# Mirrors, addresses and names of the host are nobody's business in a sandbox.
_REMOVED: Final = (
    "etc/.pwd.lock",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/group-",
    "etc/gshadow-",
    "etc/hostname",
    "etc/machine-id",
    "etc/passwd-",
    "etc/resolv.conf",
    "etc/shadow-",
    "var/lib/dpkg/status-old",
)


async def build_debian(recipe: DebianPackages, scratch: Path) -> Path:
    """Make the tree below ``scratch`` and return it. Needs the host's apt to reach its mirror.

    Raises :class:`ImageBuildError` if that fails. On cancellation no process
    and no mount is left.
    """
    apt = await HostApt.read()
    suite = recipe.suite or apt.codename
    sources = apt.of_suite(suite)
    tree = scratch / "tree"
    # No SOURCE_DATE_EPOCH: Python would then compile its library in a way that
    # reads and hashes every source file again at each import.
    env = {"TMPDIR": str(scratch), **apt.environment}
    include = [f"--include={','.join(recipe.packages)}"] if recipe.packages else []
    if await _MMDEBSTRAP.path() is not None:
        # In a file, because a mirror's address may hold a password.
        listed = scratch / "sources.list"
        await anyio.to_thread.run_sync(_write_sources, listed, sources)
        hook = [f"--hook-dir={_MERGED_USR}"] if _MERGED_USR.is_dir() else []
        await _MMDEBSTRAP.run(
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            *include,
            *hook,
            *(f"--aptopt={option}" for option in apt.options),
            suite,
            str(tree),
            str(listed),
            deadline_s=_DEADLINE_S,
            env=env,
            before=_ISOLATED,
        )
    elif await _DEBOOTSTRAP.path() is not None:
        first = next(source for source in sources if source.release == suite)
        keyring = [f"--keyring={first.signed_by}"] if first.signed_by else []
        await _DEBOOTSTRAP.run(
            "--variant=minbase",
            *include,
            *keyring,
            suite,
            str(tree),
            first.uri,
            deadline_s=_DEADLINE_S,
            env=env,
            before=_ISOLATED,
        )
    else:
        raise ImageBuildError("mmdebstrap is not installed: install the Debian package mmdebstrap")
    await anyio.to_thread.run_sync(_trim, tree)
    return tree


def _write_sources(path: Path, sources: tuple[AptSource, ...]) -> None:
    path.touch(mode=0o600)
    path.write_text("".join(f"{source}\n" for source in sources))


def _trim(tree: Path) -> None:
    for relative in _EMPTIED:
        if (tree / relative).is_dir():
            shutil.rmtree(tree / relative)
            (tree / relative).mkdir()
    for relative in _REMOVED:
        path = tree / relative
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shadow = tree / "etc/shadow"
    users = [line.split(":") for line in shadow.read_text().splitlines()]
    shadow.write_text(
        "".join(f"{':'.join([*user[:2], _SHADOW_DAY, *user[3:]])}\n" for user in users)
    )
    for parent, directories, files in os.walk(tree / "usr/share/doc", topdown=False):
        # Who passes an image on owes its licences.
        for name in files:
            if name != "copyright":
                Path(parent, name).unlink()
        if not directories and not any(Path(parent).iterdir()):
            Path(parent).rmdir()
