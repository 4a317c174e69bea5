"""What a look at the host came to."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    """Stable name, such as ``host.kernel``."""
    status: Status
    """``fail``: no worker can run here as it should; ``warn``: one can, with a lack."""
    seen: str
    """What was found. Never a secret."""
    remedy: str = ""
    """What to do about it, as one sentence; empty if nothing is to be done."""


def ok(name: str, seen: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(name=name, status="ok", seen=seen)


def warn(name: str, seen: str, remedy: str) -> Finding:
    """Return a lack that a worker can live with."""
    return Finding(name=name, status="warn", seen=seen, remedy=remedy)


def fail(name: str, seen: str, remedy: str) -> Finding:
    """Return what keeps a worker from running as it should."""
    return Finding(name=name, status="fail", seen=seen, remedy=remedy)
