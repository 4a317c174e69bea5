"""How a job, or an operator, says which image is meant."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from corral.errors import ErrInvalidJob

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


class ImageReference(msgspec.Struct, frozen=True, kw_only=True):
    """A checked reference: a name, or a digest. Exactly one of the two is set.

    Both are safe as one component of a path: neither can be empty, hold a
    slash, or begin with a dot.
    """

    name: str | None = None
    hex_digest: str | None = None
    """The 64 digits, without ``sha256:``."""

    @staticmethod
    def parse(text: str) -> ImageReference:
        """Read ``python`` or ``sha256:<64 hex digits>``.

        Raises :class:`corral.errors.ErrInvalidJob` at ``$.image`` for anything else.
        """
        digest = _DIGEST.fullmatch(text)
        if digest is not None:
            return ImageReference(hex_digest=digest[1])
        return ImageReference.of_name(text)

    @staticmethod
    def of_name(text: str) -> ImageReference:
        """Read a name only: what an image may be called when it is installed."""
        if _NAME.fullmatch(text) is None:
            raise ErrInvalidJob(
                f"{text[:100]!r} names no image: use up to 63 of a-z 0-9 . _ - that begin with a "
                "letter or digit, or sha256: and 64 hexadecimal digits",
                path="$.image",
            )
        return ImageReference(name=text)

    def __str__(self) -> str:
        return self.name if self.name is not None else f"sha256:{self.hex_digest}"
