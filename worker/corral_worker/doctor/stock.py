"""Looks at the images, and at the tools that build them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anyio
import anyio.to_thread

from corral import CorralError
from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.images.builder import default_recipes
from corral_worker.images.store import Image, ImageStore
from corral_worker.images.tool import Tool
from corral_worker.settings import Settings

_VERIFY_WITHIN_S = 20.0
_MIB = 1024**2
_TOOLS = (
    (Tool("mkfs.erofs", package="erofs-utils"), "every image"),
    (Tool("mmdebstrap", package="mmdebstrap"), "images of Debian packages"),
    (Tool("unshare", package="util-linux"), "images of Debian packages"),
    (Tool("apt-get", package="apt"), "images of Debian packages"),
    (Tool("dpkg-deb", package="dpkg"), "the image base"),
    (Tool("skopeo", package="skopeo"), "OCI images"),
    (Tool("umoci", package="umoci"), "OCI images"),
)


async def look_at_images(settings: Settings) -> Iterable[Finding]:
    """Say which images there are and whether their bytes are still those of their digests."""
    store = ImageStore(settings.images)
    images = await store.list()
    names = await anyio.to_thread.run_sync(_names, store.root)
    findings = [presence({image.name for image in images}, names, store.root)]
    verified: dict[str, str | bool] = {}
    with anyio.move_on_after(_VERIFY_WITHIN_S):
        for digest in dict.fromkeys(image.digest for image in images):
            verified[digest] = await _verified(store, digest)
    findings.extend(state(image, verified.get(image.digest)) for image in images)
    return findings


def presence(found: set[str | None], names: set[str], root: Path) -> Finding:
    """Judge which images there are, of those that the store has names for."""
    damaged = names - found
    missing = default_recipes().keys() - found
    if damaged:
        return fail(
            "images",
            f"{root}: damaged or gone: {', '.join(sorted(damaged))}",
            f"Build again: corral images build {min(damaged)}.",
        )
    if not found:
        return fail(
            "images",
            f"none in {root}",
            "Build the default ones: corral images build base, corral images build python.",
        )
    if missing:
        return warn(
            "images",
            f"{root}: {len(found)}, without the default {', '.join(sorted(missing))}",
            f"Build it: corral images build {min(missing)}.",
        )
    return ok("images", f"{root}: {len(found)}")


def state(image: Image, verified: str | bool | None) -> Finding:  # noqa: FBT001 - a verdict
    """Judge one image: whether its bytes are right, what kept them from being read, or neither."""
    name = f"images.{image.name or image.digest[:19]}"
    seen = f"{image.digest[:19]}, {image.size_bytes / _MIB:.1f} MiB"
    match verified:
        case True:
            return ok(name, f"{seen}, its bytes are those of its digest")
        case None:
            return warn(
                name,
                f"{seen}, not read whole within {_VERIFY_WITHIN_S:g} s",
                "Look for a slow disk; the image may be as it should.",
            )
        case False:
            why = "its bytes are not those of its digest"
        case str():
            why = verified
    return fail(name, f"{seen}: {why}", "Remove the image and build it again.")


async def look_at_tools() -> Iterable[Finding]:
    """Say which tools are there that building images takes."""
    return [
        tool(each.program, await each.path(), package=each.package, builds=builds)
        for each, builds in _TOOLS
    ]


def tool(program: str, path: str | None, *, package: str, builds: str) -> Finding:
    """Judge whether a tool is there; a worker whose images are made can do without."""
    name = f"tools.{program}"
    if path is None:
        return warn(
            name, f"not installed: builds {builds}", f"Install the Debian package {package}."
        )
    return ok(name, path)


async def _verified(store: ImageStore, digest: str) -> str | bool:
    try:
        return await store.verify(digest)
    except (CorralError, OSError) as error:
        return str(error)


def _names(root: Path) -> set[str]:
    directory = root / "names"
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()
