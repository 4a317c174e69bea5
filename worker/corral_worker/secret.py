"""A value that is to be used, and never shown."""

from __future__ import annotations

from typing import final

MARKER = "***"
"""What stands for a secret wherever one would be shown."""


@final
class Secret:
    """A string that shows itself as ``***`` in text, reprs, errors and logs.

    ::

        >>> Secret("hunter2")
        ***
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string itself; hand it straight to what needs it."""
        return self._value

    def __repr__(self) -> str:
        return MARKER

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(MARKER, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))
