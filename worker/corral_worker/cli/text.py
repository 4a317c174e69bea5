"""Text of strangers on an operator's terminal."""

from __future__ import annotations

_LONGEST = 1000


def printable(text: str) -> str:
    """Return the text with what could steer a terminal escaped, and shortened if it is long."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in shown
    )
