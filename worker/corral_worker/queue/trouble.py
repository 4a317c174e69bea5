"""What is logged of an error that Redis, or the way to it, answered with."""

from __future__ import annotations

from redis.exceptions import ResponseError

_QUOTES_FROM = ", with args beginning with"
"""What follows in the one answer of Redis that quotes what it was sent."""
_LONGEST = 300


def reason(error: Exception) -> str:
    """Return the kind of an error, and what Redis said; never anything of a job's data."""
    kind = type(error).__name__
    if not isinstance(error, ResponseError):
        return kind
    said = str(error).partition(_QUOTES_FROM)[0]
    return f"{kind}: {said[:_LONGEST]}"
