"""Packs a directory into an EROFS file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from corral_worker.images.tool import Tool

_MKFS: Final = Tool("mkfs.erofs", package="erofs-utils")
_DEADLINE_S: Final = 300.0
_UUID: Final = "c0a10000-0000-4000-8000-000000000000"
# Far in the future, because mkfs.erofs lowers every newer time to this one.
# Times must survive: Python takes a .pyc for stale, and compiles again at every
# start, if its source's time has changed. `-T` would overwrite them all.
_BUILD_TIME: Final = "4102444800"


async def pack(directory: Path, target: Path) -> None:
    """Write ``directory`` to the new file ``target``, uncompressed.

    Owners, modes and times are kept, extended attributes are not: the same tree
    gives the same bytes on every host. Raises
    :class:`~corral_worker.images.errors.ImageBuildError` if it fails.
    """
    await _MKFS.run(
        "--quiet",
        # Without it gVisor cannot read the file's tail: "bad address".
        "-Enoinline_data",
        # File capabilities would do nothing under no_new_privs, and a host's
        # security labels would change the digest.
        "-x-1",
        f"-U{_UUID}",
        str(target),
        str(directory),
        deadline_s=_DEADLINE_S,
        env={"SOURCE_DATE_EPOCH": _BUILD_TIME},
    )
