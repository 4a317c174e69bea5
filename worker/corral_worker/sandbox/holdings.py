"""The sandboxes that a worker has now, and the names it gives them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager

_MARK = re.compile(r"[0-9a-f]{8}\Z")
_NAME = re.compile(r"corral-([0-9a-f]{8})(?:-[0-9a-f]{6,12})?\Z")
_SANDBOX = re.compile(r"corral-[0-9a-f]{8}-[0-9a-f]{6,12}")


class Holdings:
    """What one worker holds: each sandbox from before it is made until it is gone.

    Everything that starts sandboxes shares it. On the host, whatever has a name
    of this worker's and is not held is a leftover, and will be removed.

    Args:
        worker: the worker's mark, eight hexadecimal digits that no other
            worker of the host has.

    Raises:
        ValueError: that is no mark.
    """

    def __init__(self, worker: str) -> None:
        if not _MARK.match(worker):
            raise ValueError(f"{worker!r} is no worker's mark")
        self.worker = worker
        # Not at random: no name comes again as long as anything may remember it, and it
        # stays short, for gVisor's sockets have it in their paths.
        self._numbers = itertools.count(1)
        self._held: set[str] = set()

    @contextmanager
    def hold(self) -> Iterator[str]:
        """Hold a new sandbox for the length of the block, and give its id."""
        sandbox_id = f"{beacon_of(self.worker)}-{next(self._numbers):06x}"
        self._held.add(sandbox_id)
        try:
            yield sandbox_id
        finally:
            self._held.remove(sandbox_id)

    def now(self) -> frozenset[str]:
        """Return the ids that are held at this moment."""
        return frozenset(self._held)


def beacon_of(worker: str) -> str:
    """Return the name of the cgroup that stands for a worker itself."""
    return f"corral-{worker}"


def worker_of(name: str) -> str | None:
    """Return the mark of the worker that a sandbox, or a worker's own cgroup, is named after."""
    match = _NAME.match(name)
    return match[1] if match else None


def is_sandbox(name: str) -> bool:
    """Return whether a name is that of a sandbox, whosever it is."""
    worker = worker_of(name)
    return worker is not None and name != beacon_of(worker)


def sandbox_in(text: str) -> str | None:
    """Return the first sandbox id that a text holds, such as the name of a file of runsc's."""
    match = _SANDBOX.search(text)
    return match[0] if match else None
