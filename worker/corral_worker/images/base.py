"""The default image ``base``: busybox."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import anyio.to_thread

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.tool import Tool

_APT_GET: Final = Tool("apt-get", package="apt")
_DPKG_DEB: Final = Tool("dpkg-deb", package="dpkg")
_DOWNLOAD_S: Final = 120.0
_LOCAL_S: Final = 30.0
_APPLET: Final = re.compile(r"[A-Za-z0-9_.\[][A-Za-z0-9_.\[-]*", re.ASCII)
_USERS: Final = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"
_GROUPS: Final = "root:x:0:\nnogroup:x:65534:\nnobody:x:65534:\n"


async def build_base(scratch: Path) -> Path:
    """Make the tree below ``scratch`` and return it. Needs the host's apt to reach its mirror.

    Raises :class:`ImageBuildError` if that fails. On cancellation no process is left.
    """
    download = scratch / "download"
    await anyio.to_thread.run_sync(download.mkdir)
    # As root on purpose: apt's own user may not enter the scratch directory.
    # apt checks the package against its signed index either way.
    await _APT_GET.run(
        "--option=APT::Sandbox::User=root",
        "download",
        "busybox-static",
        cwd=download,
        deadline_s=_DOWNLOAD_S,
    )
    packages = await anyio.to_thread.run_sync(lambda: list(download.glob("*.deb")))
    if len(packages) != 1:
        raise ImageBuildError("apt-get downloaded no busybox-static: run `apt-get update` first")
    unpacked = scratch / "unpacked"
    await _DPKG_DEB.run("--extract", str(packages[0]), str(unpacked), deadline_s=_LOCAL_S)
    tree = scratch / "tree"
    busybox = await anyio.to_thread.run_sync(_lay_out, unpacked, tree)
    # From a signed package, so it may run here: only it knows its applets.
    applets = await Tool(str(busybox), package="busybox-static").run("--list", deadline_s=_LOCAL_S)
    await anyio.to_thread.run_sync(_link, busybox, applets.split())
    return tree


def _lay_out(unpacked: Path, tree: Path) -> Path:
    bin_directory = tree / "usr" / "bin"
    bin_directory.mkdir(parents=True)
    for link, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin")):
        (tree / link).symlink_to(target)
    found = [
        path for path in (unpacked / "bin/busybox", unpacked / "usr/bin/busybox") if path.is_file()
    ]
    if not found:
        raise ImageBuildError("the package busybox-static holds no busybox: is it Debian's?")
    busybox = found[0].rename(bin_directory / "busybox")
    (tree / "root").mkdir(mode=0o700)
    etc = tree / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(_USERS)
    (etc / "group").write_text(_GROUPS)
    # Whatever the umask: the job is not root.
    for directory in (tree, tree / "usr", bin_directory, etc):
        directory.chmod(0o755)
    for file in (etc / "passwd", etc / "group"):
        file.chmod(0o644)
    return busybox


def _link(busybox: Path, applets: list[str]) -> None:
    for applet in applets:
        if applet != busybox.name and _APPLET.fullmatch(applet):
            (busybox.parent / applet).symlink_to(busybox.name)
