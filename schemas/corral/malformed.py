"""The refusal of what cannot be decoded: bounded, and with the place of the mistake."""

from __future__ import annotations

import re

from corral.errors import ErrInvalidJob

_SHOWN = 200
_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`\Z")


def malformed(error: Exception, root: str = "$") -> ErrInvalidJob:
    """Return what to raise for an error of msgspec's, with the path of the field.

    Args:
        error: what msgspec raised.
        root: path of what it was decoding.
    """
    match = _PLACE.search(str(error))
    message, path = (str(error)[: match.start()], match["path"]) if match else (str(error), "")
    # msgspec gives the path of the object that holds the unknown field. Its
    # name is the sender's, as long as the payload allows.
    field = message.removeprefix("Object contains unknown field `")
    if field != message:
        path = f"{path}.{field.rstrip('`')}"
    return ErrInvalidJob(f"malformed: {message[:_SHOWN]}", path=f"{root}{path}"[:_SHOWN])


def check_size(data: bytes | memoryview, most: int) -> None:
    """Return if ``data`` is small enough to be decoded.

    Raises:
        ErrInvalidJob: it has more than ``most`` bytes.
    """
    if len(data) > most:
        raise ErrInvalidJob(f"the payload has {len(data)} bytes, at most {most} are accepted")
