"""One call of a command line tool."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import msgspec

from corral_worker.process.capture import BoundedOutput, Captured
from corral_worker.process.child import child_process
from corral_worker.process.output import Pipe
from corral_worker.process.reading import Reading

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where tools are looked for, whatever the worker's own PATH says."""

_DRAIN_WITHIN_S = 1.0


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that has ended."""

    status: int
    """Exit code, or minus the number of the signal that ended it."""
    stdout: Captured
    stderr: Captured


class CallTimeoutError(TimeoutError):
    """Raised if a tool did not end in time. It was killed.

    Attributes:
        stdout: what it had printed until then.
        stderr: the same of its other stream.
    """

    def __init__(self, stdout: Captured, stderr: Captured) -> None:
        super().__init__("the tool did not end in time")
        self.stdout = stdout
        self.stderr = stderr


async def call(
    argv: Sequence[str],
    *,
    within_s: float,
    keep_bytes: int = 64 * 1024,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
) -> Completed:
    """Run a tool to its end, without input, and return what it printed.

    On cancellation, and when the time is up, its process group is killed and
    it is reaped before this returns.

    Args:
        argv: the tool and its arguments; no shell is involved.
        within_s: seconds it may take.
        keep_bytes: most bytes kept of each stream.
        env: its whole environment; only a PATH if left out.
        cwd: directory it starts in.

    Raises:
        OSError: it cannot be executed, or the host fails while it runs.
        CallTimeoutError: it did not end in time.
    """
    stdout, stderr = BoundedOutput(keep_bytes), BoundedOutput(keep_bytes)
    status: int | None = None
    failure: OSError | None = None
    with (
        anyio.move_on_after(within_s),
        Pipe(parent="read") as out,
        Pipe(parent="read") as err,
    ):
        async with child_process(
            argv,
            env={"PATH": PATH} if env is None else env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out.theirs,
            stderr=err.theirs,
        ) as child:
            out.close(out.theirs)
            err.close(err.theirs)
            async with anyio.create_task_group() as tasks:
                try:
                    with Reading(tasks) as reading:
                        reading.read(out.ours, stdout.feed)
                        reading.read(err.ours, stderr.feed)
                        status = await child.wait()
                        # A grandchild may hold the pipes open for ever.
                        with anyio.move_on_after(_DRAIN_WITHIN_S):
                            await reading.ended()
                except OSError as error:
                    failure = error  # raised below: not as part of a group
    if failure is not None:
        raise failure
    if status is None:
        raise CallTimeoutError(stdout.captured(), stderr.captured())
    return Completed(status=status, stdout=stdout.captured(), stderr=stderr.captured())
