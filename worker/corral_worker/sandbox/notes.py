"""What runsc and the sentry note about a sandbox while it lives."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated

import msgspec
from msgspec import Meta

_LONGEST_LINE = 64 * 1024
_MOST_AGE_S = 1.0
# The name of gVisor's own source file stands first: no guest can have a note begin so.
_TOLD = re.compile(rb'\{"msg":"(?:kernel|loader|boot)\.go:\d+\] (?:EXEC|Process|application) ?')
_EXEC = re.compile(r"kernel\.go:\d+\] EXEC: ")
_STARTED = re.compile(r"loader\.go:\d+\] Process should have started")
_EXITED = re.compile(
    r"boot\.go:\d+\] application exiting with (exit status|killed by signal) (\d{1,3})\b"
)


class _Note(msgspec.Struct):
    msg: str
    time: Annotated[dt.datetime, Meta(tz=True)]


class Notes:
    """Reads the debug log of a sandbox as it comes, in bounded memory.

    The sentry alone always knows how the program ended. ``runsc run`` may come
    too late to ask, or lose the sentry while it waits: then it takes the end of
    the sentry's process for that of the program.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._started: dt.datetime | None = None
        self._exited: dt.datetime | None = None
        self.is_starting = False
        """Whether the program may have begun: no later note is needed for that."""
        self.wait_status: int | None = None
        """The program's wait status, as of wait(2), once it has ended."""

    @property
    def begun(self) -> bool:
        """Whether the program has begun for certain."""
        return self._started is not None or self.wait_status is not None

    @property
    def run_s(self) -> float:
        """Seconds the program ran, by the sentry's clock; 0 as long as either end is unknown."""
        if self._started is None or self._exited is None:
            return 0.0
        return max(0.0, (self._exited - self._started).total_seconds())

    def age_s(self) -> float:
        """Return how many seconds ago the program started; 0 if that is not known."""
        if self._started is None:
            return 0.0
        # The sentry's clock is the host's, which may be set at any time.
        age = (dt.datetime.now(dt.UTC) - self._started).total_seconds()
        return age if 0 <= age <= _MOST_AGE_S else 0.0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the log."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        # Of a longer line, which quotes the job's arguments, only the beginning is of use.
        self._rest = rest[:_LONGEST_LINE]
        for line in lines:
            if _TOLD.match(line):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            note = msgspec.json.decode(line, type=_Note)
        except (ValueError, RecursionError):
            self.is_starting |= b"] EXEC: " in line[:64]
            return
        if _EXEC.match(note.msg):
            self.is_starting = True
        elif _STARTED.match(note.msg) and self._started is None:
            self._started = note.time
        elif (match := _EXITED.match(note.msg)) and self.wait_status is None:
            self._exited = note.time
            number = int(match[2])
            self.wait_status = number if match[1] == "killed by signal" else number << 8
