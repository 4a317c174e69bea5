"""The file in which runsc keeps what it knows of a sandbox, or of a container in one."""

from __future__ import annotations

import re
from pathlib import Path

_SANDBOX_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
# In the job's own strings, which are in the file too, these quotes would be escaped.
_STATUS = re.compile(rb'"status":"([a-z]+)"')


class StateFile:
    """A sandbox's state file, read again only when it has changed.

    A look costs a stat(2); ``runsc state`` would cost a process. The file also
    holds the job's arguments and environment, so it can be megabytes large.

    Args:
        root: directory of runsc's state.
        sandbox_id: the sandbox.
        container: the container; the first one has the sandbox's own id.

    Raises:
        ValueError: an id is not safe as a path component.
    """

    def __init__(self, root: Path, sandbox_id: str, container: str | None = None) -> None:
        check_sandbox_id(sandbox_id)
        first = check_sandbox_id(container or sandbox_id)
        self._path = root / f"{first}_sandbox:{sandbox_id}.state"
        self._version: tuple[int, int, int] | None = None
        self._status: str | None = None

    def status(self) -> str | None:
        """Return ``creating``, ``created``, ``running`` or ``stopped``; None without a file."""
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version != self._version:
                match = _STATUS.search(self._path.read_bytes())
                # Half written, it is looked at again.
                self._version = version if match else None
                self._status = match[1].decode() if match else None
        except OSError:
            return None
        return self._status


def check_sandbox_id(sandbox_id: str) -> str:
    """Return an id that is safe as a path component and as an argument.

    Raises:
        ValueError: it is not.
    """
    if not _SANDBOX_ID.match(sandbox_id):
        raise ValueError(f"{sandbox_id!r} is no sandbox id")
    return sandbox_id
