"""Files of images: hashed as they are read and written, and on the disk before they count."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import anyio.from_thread

from corral_worker.images.errors import ImageBuildError

_CHUNK: Final = 1 << 20
_EROFS_MAGIC_OFFSET: Final = 1024
_EROFS_MAGIC: Final = (0xE0F5E1E2).to_bytes(4, "little")


def hash_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal. For a worker thread; ends when its task does."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def copy_erofs(source: Path, target: Path) -> tuple[str, int]:
    """Copy an EROFS file to a new, read-only one; return the copy's SHA-256 and its size.

    The bytes that were written are hashed, not those that may be there later.
    For a worker thread; ends when its task does.

    Raises:
        ImageBuildError: it is no EROFS file.
    """
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, target.open("xb") as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise ImageBuildError(f"{source} is not a regular file: name an EROFS file")
        for chunk in _chunks(reader):
            if size == 0 and chunk[_EROFS_MAGIC_OFFSET:][: len(_EROFS_MAGIC)] != _EROFS_MAGIC:
                raise ImageBuildError(f"{source} is not EROFS: make it with `corral images build`")
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        if size == 0:
            raise ImageBuildError(f"{source} is empty: make it with `corral images build`")
        os.fchmod(writer.fileno(), 0o400)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest(), size


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        anyio.from_thread.check_cancelled()
        yield chunk
