"""What an image can be built from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

# As Debian's policy words it; neither can be taken for an option.
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+", re.ASCII)
_SUITE: Final = re.compile(r"[a-z][a-z0-9.-]*", re.ASCII)
_OCI: Final = re.compile(r"[A-Za-z0-9./][A-Za-z0-9._:/@+-]{0,1023}", re.ASCII)


class BaseImage(msgspec.Struct, frozen=True, kw_only=True):
    """Busybox and nothing else: a shell and the usual tools, built in seconds."""

    @property
    def source(self) -> str:
        """What :attr:`Image.source` will say."""
        return "debian:busybox-static"


class DebianPackages(msgspec.Struct, frozen=True, kw_only=True):
    """A minimal Debian with some packages and what they depend on.

    Raises :class:`ValueError` for what cannot be a package or a suite.
    """

    packages: tuple[str, ...]
    suite: str | None = None
    """Such as ``bookworm``; the host's own if absent."""

    def __post_init__(self) -> None:
        for package in self.packages:
            if _PACKAGE.fullmatch(package) is None:
                raise ValueError(f"{package!r} is no name of a Debian package")
        if self.suite is not None and _SUITE.fullmatch(self.suite) is None:
            raise ValueError(f"{self.suite!r} is no name of a Debian suite")

    @property
    def source(self) -> str:
        """What :attr:`Image.source` will say."""
        return ":".join(filter(None, ("debian", self.suite, ",".join(self.packages))))


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of a directory of this host, with owners, modes, times and symlinks as they are."""

    path: Path

    @property
    def source(self) -> str:
        """What :attr:`Image.source` will say: not where on the host it was."""
        return "directory"


class OciImage(msgspec.Struct, frozen=True, kw_only=True):
    """An OCI image: its files only; a job brings its own argv and environment.

    Raises :class:`ValueError` for what cannot be a reference.
    """

    reference: str
    """As registries write it (``alpine:3.20``), or the path of an OCI layout.

    A path begins with ``/`` or ``.`` and may end in ``:<tag>``; the layout's
    only image is taken if it does not.
    """

    def __post_init__(self) -> None:
        if _OCI.fullmatch(self.reference) is None:
            raise ValueError(f"{self.reference[:100]!r} is no reference to an OCI image")

    @property
    def source(self) -> str:
        """What :attr:`Image.source` will say."""
        return f"oci:{self.reference}"


Recipe = BaseImage | DebianPackages | Directory | OciImage
