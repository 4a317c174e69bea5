"""The pipes between a program and its worker."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import anyio.abc

from corral import Job
from corral_worker.process.output import Pipe, supply
from corral_worker.process.reading import Reading
from corral_worker.sandbox.containers import Streams
from corral_worker.sandbox.flood import OutputMeter
from corral_worker.sandbox.ladder import Life


class Pipes:
    """Both sides of a job's standard streams, all of which are closed when the block ends.

    Args:
        job: whose input is supplied.
    """

    def __init__(self, job: Job) -> None:
        self._input = job.stdin
        # If one cannot be made, those before it are closed.
        with ExitStack() as made:
            self._stdin = made.enter_context(Pipe(parent="write")) if job.stdin else None
            self._stdout = made.enter_context(Pipe(parent="read"))
            self._stderr = made.enter_context(Pipe(parent="read"))
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            made.callback(os.close, nothing)
            self._owned = made.pop_all()
        self.streams = Streams(
            stdin=self._stdin.theirs if self._stdin else nothing,
            stdout=self._stdout.theirs,
            stderr=self._stderr.theirs,
        )
        """The program's side."""

    def __enter__(self) -> Self:
        """Return the pipes themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both sides."""
        self._owned.close()

    def close_theirs(self) -> None:
        """Close what the program has: only when it has ended, too, there is an end to read."""
        for pipe in filter(None, (self._stdin, self._stdout, self._stderr)):
            pipe.close(pipe.theirs)

    def listen(self, reading: Reading, life: Life, meter: OutputMeter) -> None:
        """Have what the program writes counted and kept."""
        for pipe, output in ((self._stdout, life.stdout), (self._stderr, life.stderr)):
            reading.read(pipe.ours, meter.before(output.feed), settling=output)

    def speak(self, tasks: anyio.abc.TaskGroup) -> None:
        """Give the program its input, then the end of it, in a task if there is any."""
        if self._stdin:
            tasks.start_soon(_supply_and_close, self._stdin, self._input)


async def _supply_and_close(stdin: Pipe, data: bytes) -> None:
    await supply(stdin.ours, data)
    stdin.close(stdin.ours)
