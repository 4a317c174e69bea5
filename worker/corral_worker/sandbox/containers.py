"""Containers in a sandbox that runs: what is asked of it, by whichever way that is done."""

from __future__ import annotations

from typing import Protocol

import msgspec

from corral.result import StartWay
from corral_worker.sandbox.bundle import SandboxSpec


class RefusedError(Exception):
    """Raised if a sandbox answers, but not as asked.

    Attributes:
        words: what it said.
    """

    def __init__(self, asked: str, words: str) -> None:
        super().__init__(f"{asked}: {words}")
        self.words = words


class SandboxLostError(Exception):
    """Raised if nobody answers any more: the sandbox has ended, or was never there."""


class SandboxGoneError(SandboxLostError):
    """Raised if that was so before anything was asked: nothing was started."""


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors that become a program's own; the caller keeps its copies."""

    stdin: int
    stdout: int
    stderr: int


class Containers(Protocol):
    """Starts programs in one sandbox that runs, each in a container of its own.

    A call that is cancelled, or whose time is up, is not taken back: a program whose start was
    asked for may run. It ends with its sandbox.
    """

    @property
    def way(self) -> StartWay:
        """How it is done."""

    async def create(self, container: str, *, within_s: float) -> None:
        """Do what can be done before it is known what is to run.

        Args:
            container: its id, new in this sandbox.
            within_s: seconds it may take.

        Raises:
            RefusedError: the sandbox refuses.
            SandboxLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """

    async def start(
        self, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        """Start the program of a container that was created: it runs when this returns.

        After a :class:`SandboxLostError` or a :class:`TimeoutError` it may run as well.

        Args:
            container: its id.
            spec: what to run.
            streams: descriptors of its program.
            within_s: seconds it may take.

        Raises:
            RefusedError: there is no such program or directory, or the like. It does not run.
            SandboxGoneError: the sandbox is not there any more. It does not run.
            SandboxLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """

    async def wait(self, container: str, *, within_s: float) -> int:
        """Return the wait status of a container's program when it has ended.

        Raises:
            RefusedError: there is no such container.
            SandboxLostError: the sandbox ended first.
            TimeoutError: it has not ended in time.
        """

    def last_words(self, container: str) -> bytes:
        """Return what can stand in a program's standard error behind its own, of its sandbox's end.

        Blocks for a millisecond: call it in a thread.
        """

    async def destroy(self, container: str, *, within_s: float) -> None:
        """Forget a container whose program has ended, its file systems included.

        Raises:
            RefusedError: there is no such container.
            SandboxLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
