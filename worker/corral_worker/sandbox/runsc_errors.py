"""What can go wrong when runsc is called, and the only place that reads its words."""

from __future__ import annotations

import json

# The only way runsc tells that a container is gone; gVisor's own shim looks for it too.
_GONE = "does not exist"


class RunscError(Exception):
    """Raised if a call of runsc failed.

    Attributes:
        verb: what was called.
        status: its exit code, or minus the number of the signal that ended it.
        detail: what it printed.
    """

    def __init__(self, verb: str, status: int | None, detail: str) -> None:
        super().__init__(f"runsc {verb} failed ({status}): {detail}")
        self.verb = verb
        self.status = status
        self.detail = detail


class RunscNotFoundError(RunscError):
    """Raised if runsc does not know the sandbox: it is gone, or never was."""


class RunscTimeoutError(RunscError):
    """Raised if runsc did not come back in time; it was killed."""


class RunscMissingError(RunscError):
    """Raised if there is no runsc to execute."""


class RunscReplacedError(RunscError):
    """Raised if runsc is not the one any more whose version is known."""


def classify(verb: str, status: int, complaint: bytes) -> RunscError:
    """Turn what runsc printed into a type: the only place that reads its words."""
    detail = complaint.decode(errors="replace").strip()
    if _GONE in detail:
        return RunscNotFoundError(verb, status, detail)
    return RunscError(verb, status, detail)


def error_messages(log: bytes) -> list[str]:
    """Return the messages of a JSON log; lines that are not JSON are left out."""
    messages: list[str] = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("msg"), str):
            messages.append(entry["msg"])
    return messages
