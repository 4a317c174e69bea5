"""Builds images and installs them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import assert_never

import anyio.to_thread

from corral_worker.images.base import build_base
from corral_worker.images.debian import build_debian
from corral_worker.images.directory import build_directory
from corral_worker.images.erofs import pack
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.oci import build_oci
from corral_worker.images.recipe import BaseImage, DebianPackages, Directory, OciImage, Recipe
from corral_worker.images.reference import ImageReference
from corral_worker.images.store import Image, ImageStore
from corral_worker.images.tree import finish_tree


class ImageBuilder:
    """Turns recipes into images of one store."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def build(self, recipe: Recipe, *, name: str | None = None) -> Image:
        """Build an image, install it, and let ``name`` mean it. Needs root.

        Raises :class:`ImageBuildError` if a tool is missing, fails or takes too
        long, and :class:`corral.errors.ErrInvalidJob` for a bad name. Then, and
        on cancellation, the store is as before: no process, mount or temporary
        file is left.
        """
        if name is not None:
            ImageReference.of_name(name)
        if os.geteuid() != 0:
            raise ImageBuildError("only root can keep the owners of an image's files: use sudo")
        try:
            async with self._store.scratch() as scratch:
                # By the file system's clock, which runs behind the other one.
                began_ns = (await anyio.Path(scratch).stat()).st_mtime_ns
                tree = await _tree(recipe, scratch)
                await anyio.to_thread.run_sync(partial(finish_tree, tree, began_ns=began_ns))
                rootfs = scratch / "rootfs.erofs"
                await pack(tree, rootfs)
                return await self._store.install(rootfs, name=name, source=recipe.source)
        except OSError as error:
            raise ImageBuildError(
                f"the build met an error of the host: {error}. Look for free space and "
                f"permissions below {self._store.root}, then build again"
            ) from error


def default_recipes() -> Mapping[str, Recipe]:
    """Return the recipes of the images every host should have, by name."""
    return MappingProxyType(
        {
            "base": BaseImage(),
            "python": DebianPackages(packages=("python3", "python-is-python3")),
        }
    )


async def _tree(recipe: Recipe, scratch: Path) -> Path:
    match recipe:
        case BaseImage():
            return await build_base(scratch)
        case DebianPackages():
            return await build_debian(recipe, scratch)
        case Directory():
            return await build_directory(recipe, scratch)
        case OciImage():
            return await build_oci(recipe, scratch)
        case _:
            assert_never(recipe)
