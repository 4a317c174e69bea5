"""Directories among the system's temporary files, and what killed processes left of them."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.trace import names_in

_NAME = re.compile(r"corral-tmp-([0-9a-f]{8})\Z")


class TemporaryDirectories:
    """Those in one place, each locked for as long as the process that made it lives.

    Args:
        place: where they are; the system's own if left out.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._place = place or Path(tempfile.gettempdir())

    @contextmanager
    def make(self) -> Iterator[Path]:
        """Give a new one (mode 0700), and remove it with all that is in it.

        Raises:
            OSError: it cannot be made, or cannot be locked.
        """

        def made() -> Path:
            path = self._place / f"corral-tmp-{secrets.token_hex(4)}"
            path.mkdir(mode=0o700)
            return path

        with DirectoryLock.of_new(made) as lock:
            try:
                yield lock.path
            finally:
                shutil.rmtree(lock.path, ignore_errors=True)

    def abandoned(self, *, shared: bool) -> Iterator[tuple[str, DirectoryLock]]:
        """Yield mark and lock of each whose process is dead; it is locked until the next.

        Others may write where they are: only what this user has made counts.

        Args:
            shared: only look; several can at one time.
        """
        for name in sorted(names_in(self._place)):
            match = _NAME.match(name)
            if match is None:
                continue
            try:
                lock = DirectoryLock.take(self._place / name, shared=shared)
            except OSError:
                continue  # somebody's, or no directory, or gone
            with lock:
                if os.fstat(lock.descriptor).st_uid == os.geteuid():
                    yield match[1], lock
