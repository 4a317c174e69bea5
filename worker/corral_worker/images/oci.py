"""Images from OCI layouts and registries."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import anyio.to_thread

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.recipe import OciImage
from corral_worker.images.tool import Tool

_SKOPEO: Final = Tool("skopeo", package="skopeo")
_UMOCI: Final = Tool("umoci", package="umoci")
_COPY_S: Final = 900.0
_UNPACK_S: Final = 300.0
_TAG: Final = "image"


async def build_oci(recipe: OciImage, scratch: Path) -> Path:
    """Make the tree below ``scratch`` and return it.

    Of an image for several platforms the host's own is taken. For a private
    registry, log in once with ``skopeo login``: skopeo then finds the
    credentials in its own file (``REGISTRY_AUTH_FILE`` may name it), and they
    are never in an argv. Which registries and signatures are trusted stands in
    skopeo's ``/etc/containers/policy.json``. Raises :class:`ImageBuildError`
    if that fails. On cancellation no process is left.
    """
    layout, bundle = scratch / "layout", scratch / "bundle"
    origin = await anyio.to_thread.run_sync(_origin, recipe.reference)
    env = {"TMPDIR": str(scratch)}
    await _SKOPEO.run(
        "copy", "--quiet", origin, f"oci:{layout}:{_TAG}", deadline_s=_COPY_S, env=env
    )
    await _UMOCI.run(
        "unpack", "--image", f"{layout}:{_TAG}", str(bundle), deadline_s=_UNPACK_S, env=env
    )
    return bundle / "rootfs"


def _origin(reference: str) -> str:
    if not reference.startswith(("/", ".")):
        return f"docker://{reference}"
    path, _, tag = reference.partition(":")
    layout = Path(path).resolve()
    if not (layout / "oci-layout").is_file():
        raise ImageBuildError(
            f"{path} is not an OCI layout: name a directory that holds the file oci-layout"
        )
    return f"oci:{layout}:{tag}" if tag else f"oci:{layout}"
