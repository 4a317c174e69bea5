"""Named, immutable root file systems on this host.

::

    <root>/sha256/<hex>/rootfs.erofs    the image: never changed once it is here
    <root>/sha256/<hex>/image.json      where it came from
    <root>/names/<name>                 symlink to ../sha256/<hex>
    <root>/tmp/<random>/                being built or removed; locked by its owner

Everything appears and goes by one ``rename``, so that a reader needs no lock.
"""

from __future__ import annotations

import builtins
import socket
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from corral.errors import ErrImageNotFound, ErrInvalidJob
from corral_worker.images.durable import copy_erofs, hash_of, sync_directory, write_new
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.lock import directory_lock
from corral_worker.images.reference import ImageReference
from corral_worker.images.scratch import scratch_directory
from corral_worker.process.thread import in_thread

_ROOTFS: Final = "rootfs.erofs"
_MANIFEST: Final = "image.json"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One root file system, and the name it was asked for by."""

    name: str | None
    digest: str
    """``sha256:`` and the hash of the bytes of :attr:`rootfs`."""
    rootfs: Path
    size_bytes: int
    created_at: datetime
    """When these bytes were first installed here, in UTC."""
    source: str
    """What it was built from, such as ``debian:bookworm:python3``."""


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    size_bytes: int
    created_at: datetime
    source: str


class ImageStore:
    """The images below one directory, safe to share between processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = root / "names"
        self._digests = root / "sha256"
        self._tmp = root / "tmp"
        self._cache: dict[str, tuple[tuple[int, int, int], _Manifest]] = {}

    @property
    def root(self) -> Path:
        """The directory that holds everything."""
        return self._root

    def scratch(self) -> AbstractAsyncContextManager[Path]:
        """Give a temporary directory on the store's file system, removed afterwards."""
        return scratch_directory(self._tmp)

    async def resolve(self, reference: str) -> Image:
        """Find an image by its name, or by ``sha256:<digest>``.

        Two system calls once the image has been seen. Raises
        :class:`corral.errors.ErrImageNotFound` if there is none, and
        :class:`corral.errors.ErrInvalidJob` if ``reference`` is malformed.
        """
        wanted = ImageReference.parse(reference)
        # The kernel answers these two from its memory; a thread would take a hundred times as much
        # of a processor. Only what was never read is read, in a thread.
        image = self._find(wanted, unseen=False) or await in_thread(self._find, wanted)
        if image is None:
            raise _not_found(wanted)
        return image

    async def list(self) -> builtins.list[Image]:
        """Return each name's image, by name, then the images that have no name any more."""
        return await anyio.to_thread.run_sync(self._list)

    async def verify(self, reference: str) -> bool:
        """Return whether the image's bytes still have its digest. Reads the whole file.

        Raises as :meth:`resolve` does. Cancellation stops the reading.
        """
        image = await self.resolve(reference)
        digest = await anyio.to_thread.run_sync(hash_of, image.rootfs)
        return f"sha256:{digest}" == image.digest

    async def install(self, rootfs_file: Path, *, name: str | None, source: str) -> Image:
        """Copy an EROFS file into the store and, if ``name`` is given, let it mean this image.

        A name that meant another image is moved; that image stays, by digest,
        for jobs that still use it. Installing the same bytes again is cheap
        and keeps the first ``source``. Raises
        :class:`~corral_worker.images.errors.ImageBuildError` if the file is not
        EROFS, and :class:`corral.errors.ErrInvalidJob` for a bad name.
        Cancellation leaves the store as it was, or with the whole image.
        """
        wanted = None if name is None else ImageReference.of_name(name).name
        async with self.scratch() as scratch:
            return await anyio.to_thread.run_sync(
                self._install, rootfs_file, scratch, wanted, source
            )

    async def remove(self, reference: str) -> tuple[str, ...]:
        """Remove a name, or a digest with all its names; return every reference that is gone.

        An image goes with its last name. Sandboxes that run on it are not
        disturbed. Raises :class:`corral.errors.ErrImageNotFound` if there is no such image.
        """
        wanted = ImageReference.parse(reference)
        async with self.scratch() as scratch:
            gone = await anyio.to_thread.run_sync(self._remove, wanted, scratch)
        if not gone:
            raise _not_found(wanted)
        return gone

    def _find(self, wanted: ImageReference, *, unseen: bool = True) -> Image | None:
        hex_digest = wanted.hex_digest or self._target(wanted.name or "")
        if hex_digest is None:
            return None
        rootfs = self._digests / hex_digest / _ROOTFS
        manifest = self._manifest(hex_digest, rootfs, unseen=unseen)
        if manifest is None:
            return None
        return Image(
            name=wanted.name,
            digest=f"sha256:{hex_digest}",
            rootfs=rootfs,
            size_bytes=manifest.size_bytes,
            created_at=manifest.created_at,
            source=manifest.source,
        )

    def _target(self, name: str) -> str | None:
        try:
            target = (self._names / name).readlink().name
            return ImageReference.parse(f"sha256:{target}").hex_digest
        except (OSError, ErrInvalidJob):
            return None

    def _manifest(self, hex_digest: str, rootfs: Path, *, unseen: bool = True) -> _Manifest | None:
        try:
            seen = rootfs.stat()
        except FileNotFoundError:
            self._cache.pop(hex_digest, None)
            return None
        key = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        cached = self._cache.get(hex_digest)
        if cached is not None and cached[0] == key:
            return cached[1]
        if not unseen:
            return None
        try:
            text = (rootfs.parent / _MANIFEST).read_bytes()
            manifest = msgspec.json.decode(text, type=_Manifest)
        except (OSError, msgspec.MsgspecError):
            return None
        if manifest.size_bytes != seen.st_size:
            return None  # damaged: building it again replaces it
        self._cache[hex_digest] = (key, manifest)
        return manifest

    def _list(self) -> builtins.list[Image]:
        references = [ImageReference(name=name) for name in sorted(self._all_names())]
        named = [image for wanted in references if (image := self._find(wanted))]
        known = {image.digest for image in named}
        nameless = [
            ImageReference(hex_digest=path.name)
            for path in sorted(_entries(self._digests))
            if f"sha256:{path.name}" not in known
        ]
        return [*named, *(image for wanted in nameless if (image := self._find(wanted)))]

    def _all_names(self, hex_digest: str | None = None) -> tuple[str, ...]:
        return tuple(
            path.name
            for path in _entries(self._names)
            if hex_digest is None or self._target(path.name) == hex_digest
        )

    def _install(self, source_file: Path, scratch: Path, name: str | None, source: str) -> Image:
        fresh = scratch / "image"
        fresh.mkdir(mode=0o755)
        hex_digest, size = copy_erofs(source_file, fresh / _ROOTFS)
        manifest = _Manifest(size_bytes=size, created_at=datetime.now(UTC), source=source)
        write_new(fresh / _MANIFEST, msgspec.json.encode(manifest))
        sync_directory(fresh)
        # An image may hold what not every user of the host is to read.
        self._root.chmod(0o700)
        self._names.mkdir(exist_ok=True)
        self._digests.mkdir(exist_ok=True)
        home = self._digests / hex_digest
        with directory_lock(self._root):
            if self._manifest(hex_digest, home / _ROOTFS) is None:
                if home.exists():
                    home.rename(scratch / "damaged")
                fresh.rename(home)
                sync_directory(self._digests)
            if name is not None:
                link = scratch / "name"
                link.symlink_to(Path("..", "sha256", hex_digest))
                link.rename(self._names / name)
                sync_directory(self._names)
            image = self._find(ImageReference(hex_digest=hex_digest))
        if image is None:
            raise ImageBuildError(f"{home} cannot be read back: check the disk, then build again")
        return msgspec.structs.replace(image, name=name)

    def _remove(self, wanted: ImageReference, scratch: Path) -> tuple[str, ...]:
        with directory_lock(self._root):
            hex_digest = wanted.hex_digest or self._target(wanted.name or "")
            if hex_digest is None:
                return ()
            names = self._all_names(hex_digest)
            gone = names if wanted.name is None else (wanted.name,)
            for name in gone:
                (self._names / name).unlink()
            if len(gone) < len(names):
                return gone
            # By rename, so that no reader sees half an image.
            with suppress(FileNotFoundError):
                (self._digests / hex_digest).rename(scratch / "removed")
                return (*gone, f"sha256:{hex_digest}")
            return gone


def _not_found(wanted: ImageReference) -> ErrImageNotFound:
    return ErrImageNotFound(
        f"this host has no image {wanted}: see those it has with `corral images list`, "
        "make one with `corral images build`",
        # Callers do not know which of the workers' hosts that was.
        context={"image": str(wanted), "host": socket.gethostname()},
    )


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []
