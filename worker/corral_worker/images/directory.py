"""Images from a directory of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import anyio.to_thread

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.recipe import Directory
from corral_worker.images.tool import Tool

_CP: Final = Tool("cp", package="coreutils")
_DEADLINE_S: Final = 600.0


async def build_directory(recipe: Directory, scratch: Path) -> Path:
    """Copy the tree below ``scratch`` and return the copy. Symlinks are kept, never followed.

    Raises :class:`ImageBuildError` if there is no such directory, or if the
    store lies in it. On cancellation no process is left.
    """
    source = await anyio.to_thread.run_sync(_checked, recipe.path, scratch)
    tree = scratch / "tree"
    await _CP.run(
        "--archive",
        "--no-target-directory",
        "--one-file-system",
        "--reflink=auto",
        "--",
        str(source),
        str(tree),
        deadline_s=_DEADLINE_S,
    )
    return tree


def _checked(path: Path, scratch: Path) -> Path:
    source = path.resolve()
    if not source.is_dir():
        raise ImageBuildError(
            f"{path} is not a directory: name the root of the file system to pack"
        )
    if scratch.resolve().is_relative_to(source):
        raise ImageBuildError(f"{path} holds the image store itself: name a directory beside it")
    return source
