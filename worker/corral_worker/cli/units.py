"""Sizes and settings as people write them on a command line."""

from __future__ import annotations

import re
from types import MappingProxyType

import click

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:I?B)?", re.ASCII)
_FACTORS = MappingProxyType({"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40})


def byte_size(text: str) -> int:
    """Return the bytes of ``1048576``, ``64M`` or ``1.5G``; the units are powers of 1024.

    Raises:
        click.BadParameter: it is no size.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size: use bytes, or for example 64M or 1G")
    try:
        return int(float(match["number"]) * _FACTORS[match["unit"]])
    except OverflowError:
        raise click.BadParameter("that is more than any machine has") from None


def key_value(text: str) -> tuple[str, str]:
    """Return the parts of ``NAME=VALUE``.

    Raises:
        click.BadParameter: there is no name or no value. Not quoted: it may be
            a secret that lacks its name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter("use NAME=VALUE")
    return name, value


def size_text(count: int) -> str:
    """Return bytes as people read them, such as ``64 MiB``."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} B"
