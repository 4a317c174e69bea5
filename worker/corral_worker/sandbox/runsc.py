"""The typed client of the ``runsc`` command line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, final

from corral_worker.process.call import PATH, call
from corral_worker.process.child import ChildProcess, child_process
from corral_worker.sandbox.runsc_errors import (
    RunscError,
    RunscMissingError,
    RunscNotFoundError,
    RunscReplacedError,
    RunscTimeoutError,
    classify,
)
from corral_worker.sandbox.state import StateFile, check_sandbox_id
from corral_worker.sandbox.verbs import Delete, Kill, Logs, Run, Verb, Version

Platform = Literal["systrap", "ptrace", "kvm"]

REFERENCE_VERSION = (2024, 7, 29)
"""Oldest release whose systrap platform and EROFS roots were seen to work."""

_RELEASE = re.compile(r"(?:release-|0\.0~)(\d{4})(\d{2})(\d{2})")
# runsc passes the signal on to its sandbox: a worker that dies takes its sandboxes along.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
# What is runsc's own fault; all else, such as no descriptor or process left, is the host's.
_NOT_EXECUTABLE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENOEXEC}
)
_OOM_SCORE_ADJ = 500
"""The host's memory is short: a sandbox goes before the worker or anything else."""


@final
class Runsc:
    """What is true of every call of one ``runsc``: its binary, state and platform.

    Every call has a deadline, a process group of its own, bounded memory, and
    an environment that holds a PATH and nothing of the worker's.

    Args:
        binary: the executable.
        root: directory of runsc's state, used by no other worker.
        platform: how gVisor intercepts system calls.
        copy: what is executed instead of the binary: the same, where it starts quicker.
    """

    def __init__(
        self, *, binary: Path, root: Path, platform: Platform, copy: Path | None = None
    ) -> None:
        self.binary = binary
        self._executable = copy or binary
        self.root = root
        self.platform = platform
        self._pinned: tuple[int, ...] | None = None

    def pin(self) -> None:
        """Remember the binary as it is now: no sandbox is started by another one.

        What a worker says of its runsc was found out about this one.

        Raises:
            RunscMissingError: there is none.
        """
        self._pinned = self.identity()
        if self._pinned is None:
            raise self._missing()

    def is_same(self) -> bool:
        """Return whether it can be executed, and is the one that was pinned."""
        found = self.identity()
        return found is not None and self._pinned in {None, found}

    def identity(self) -> tuple[int, ...] | None:
        """Return what no other binary has; None if there is none that can be executed."""
        try:
            found = self.binary.stat()
        except OSError:
            return None
        if not os.access(self.binary, os.X_OK):
            return None
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def run(
        self,
        options: Run,
        logs: Logs,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        notes: int | None = None,
    ) -> AbstractAsyncContextManager[ChildProcess]:
        """Start a sandbox; the child ends when it has ended.

        Its exit code is the program's, or 128 plus a signal's number, or 128
        if runsc failed: the logs tell which.

        Raises:
            RunscMissingError: there is no runsc to execute.
            RunscReplacedError: it is not the one that was pinned.
            OSError: the host cannot start a process.
        """
        if self.identity() is None:
            raise self._missing()
        if not self.is_same():
            raise RunscReplacedError(
                "run",
                None,
                f"{self.binary} was replaced since the worker started: start the worker again",
            )
        return child_process(
            [
                *_DIES_WITH_US,
                str(self._executable),
                *self._flags(),
                *logs.args(notes),
                *options.args(),
            ],
            oom_score_adj=_OOM_SCORE_ADJ,
            # Else gVisor's threads, which wake each other all the time, keep each other from
            # going to sleep: docs/adr/0015-sandboxes-are-batch.md.
            scheduling=os.SCHED_BATCH,
            env={"PATH": PATH},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=() if notes is None else (notes,),
        )

    async def kill(self, options: Kill, *, within_s: float) -> None:
        """Send SIGKILL to every process of a sandbox.

        Raises:
            RunscNotFoundError: the sandbox is gone.
            RunscTimeoutError: runsc hangs (google/gvisor#14548).
            RunscError: runsc refuses, for example while the sandbox is being
                created (google/gvisor#14533).
        """
        await self._call(options, within_s=within_s)

    async def delete(self, options: Delete, *, within_s: float) -> None:
        """Kill what is left of sandboxes and forget them; gone already is no error.

        Raises:
            RunscTimeoutError: runsc hangs.
            RunscError: runsc could not.
        """
        try:
            await self._call(options, within_s=within_s)
        except RunscNotFoundError:
            return

    async def version(self, *, within_s: float) -> str:
        """Return the version as runsc prints it.

        Raises:
            RunscError: it prints none.
        """
        answer = await self._call(Version(), within_s=within_s)
        first, _, _ = answer.partition("\n")
        name, _, version = first.partition(" version ")
        if name != "runsc" or not version:
            raise RunscError("--version", 0, f"{self.binary} prints {first[:200]!r}")
        return version.strip()

    def state(self, sandbox_id: str, container: str | None = None) -> StateFile:
        """Return the state file of a sandbox or a container in it, be it there yet or not."""
        return StateFile(self.root, sandbox_id, container)

    def control_socket(self, sandbox_id: str) -> Path:
        """Return the socket over which a running sandbox answers."""
        return self.root / f"runsc-{check_sandbox_id(sandbox_id)}.sock"

    def leftovers(self, sandbox_id: str) -> list[Path]:
        """Return the files that runsc still keeps of a sandbox."""
        try:
            return [Path(file.path) for file in os.scandir(self.root) if sandbox_id in file.name]
        except FileNotFoundError:
            return []

    def forget(self, sandbox_id: str) -> list[str]:
        """Remove the files of a sandbox that is dead, and return what could not be removed.

        One whose creation was cut short has a lock and a socket that ``delete``
        knows nothing of (opencontainers/runc#4534 is the same in runc).
        """
        try:
            for file in self.leftovers(sandbox_id):
                file.unlink(missing_ok=True)
        except OSError as error:
            return [f"runsc's files of {sandbox_id}: {error.strerror}"]
        return []

    def _missing(self) -> RunscMissingError:
        return RunscMissingError("run", None, f"there is no executable {self.binary} any more")

    def _flags(self) -> list[str]:
        return [
            f"--root={self.root}",
            f"--platform={self.platform}",
            "--network=none",
            "--overlay2=none",
            # With it the sentry would keep root and capabilities on the host, for gofer
            # mounts that a sandbox here never has.
            "--directfs=false",
            "--cpu-num-from-quota",
        ]

    async def _call(self, options: Verb, *, within_s: float) -> str:
        verb, *arguments = options.args()
        argv = [str(self._executable), *self._flags(), verb, *arguments]
        try:
            done = await call(argv, within_s=within_s)
        except TimeoutError:
            raise RunscTimeoutError(verb, None, f"no answer within {within_s:g} s") from None
        except OSError as error:
            why = f"{self.binary} cannot be executed: {error.strerror}"
            kind = RunscMissingError if error.errno in _NOT_EXECUTABLE else RunscError
            raise kind(verb, None, why) from error
        if done.status != 0:
            raise classify(verb, done.status, done.stderr.data)
        return done.stdout.data.decode(errors="replace")


def find(path: Path | None) -> Path:
    """Return the runsc to use: the one named, or the first on the PATH.

    Raises:
        RunscMissingError: there is none, or it may not be executed.
    """
    # An empty part would mean the current directory.
    places = [place for place in (*os.environ.get("PATH", "").split(":"), PATH) if place]
    found = shutil.which(str(path or "runsc"), path=":".join(places))
    if found is None:
        place = str(path) if path else "the PATH"
        raise RunscMissingError(
            "--version",
            None,
            f"there is no executable runsc at {place}: run 'make setup', install gVisor, or set"
            " CORRAL_RUNSC_PATH",
        )
    return Path(found).absolute()


def is_old(version: str) -> bool:
    """Return whether a version is known to be older than the reference."""
    match = _RELEASE.search(version)
    return match is not None and tuple(map(int, match.groups())) < REFERENCE_VERSION
