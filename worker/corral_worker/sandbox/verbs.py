"""The verbs of the ``runsc`` command line that corral uses, with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec


class Verb(Protocol):
    """One verb of the command line, with its options."""

    def args(self) -> list[str]:
        """Return what stands behind the global flags, the verb first."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """``run``: create a sandbox, start its program, wait, and delete it."""

    id: str
    bundle: Path

    def args(self) -> list[str]:
        return ["run", "--bundle", str(self.bundle), self.id]


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """``kill``: send SIGKILL to every process of the sandbox."""

    id: str

    def args(self) -> list[str]:
        return ["kill", "--all", self.id, "KILL"]


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """``delete --force``: kill what is left and forget the sandboxes."""

    ids: tuple[str, ...]

    def args(self) -> list[str]:
        return ["delete", "--force", *self.ids]


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """``--version``."""

    def args(self) -> list[str]:
        return ["--version"]


class Logs(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sandbox's runsc writes what does not belong in the job's stderr."""

    directory: Path

    @property
    def errors(self) -> Path:
        """Errors of runsc itself, as JSON lines."""
        return self.directory / "runsc.log"

    @property
    def panic(self) -> Path:
        """Last words of the sentry."""
        return self.directory / "panic.log"

    def args(self, notes: int | None) -> list[str]:
        """Return the flags; ``notes`` is the descriptor for the debug log, if it is wanted."""
        flags = [
            f"--log={self.errors}",
            "--log-format=json",
            f"--panic-log={self.panic}",
        ]
        if notes is not None:
            # At its default level the log is some 80 lines, and the only place where
            # "exit 137" and "killed by 9" always differ. A file could be made to grow.
            flags += [
                f"--debug-log=/proc/self/fd/{notes}",
                "--debug-log-format=json",
                "--debug-command=run,boot",
            ]
        return flags
