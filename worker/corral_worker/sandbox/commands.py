"""Containers in a sandbox that runs, each by a ``runsc run`` of its own.

It is what Kubernetes has gVisor do for a pod. Slower than the control socket by the start of
that process, but made of nothing that is internal to gVisor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, final

import anyio
import msgspec

from corral.result import StartWay
from corral_worker.process.child import ChildProcess
from corral_worker.process.thread import in_thread
from corral_worker.sandbox.bundle import ROOT_DIRECTORY, SandboxSpec, oci_config
from corral_worker.sandbox.containers import (
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
    Streams,
)
from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.runsc_errors import RunscError, error_messages
from corral_worker.sandbox.state import StateFile
from corral_worker.sandbox.verbs import Logs, Run

_LOOK_S = 0.004
_ERRORS_BYTES = 8 * 1024 * 1024
"""A message quotes the job's arguments, of which there may be 1 MiB, as JSON."""
_NOTES_BYTES = 4096
"""The status is in the last line."""
# What only the main function of runsc says, at its end: no text of a guest's gets there.
_STATUS = re.compile(
    rb'^\{"msg":"(?:main|cli)\.go:\d+\] Exiting with status: (\d{1,5})"', re.MULTILINE
)
# Where runsc has failed decides whether the program may run: in doubt it may.
_STARTING = "running container: starting container: "
_NOT_ASKED = ("reading spec: ", "running container: creating container: ")
_NOBODY_THERE = "connecting to control server "
_REFUSED = ("creating process: ", "creating new process: ", "error finding executable ")


class _Container(msgspec.Struct, frozen=True, kw_only=True):
    child: ChildProcess
    logs: Logs
    notes: int
    """Descriptor of the file that has runsc's debug log."""
    owned: AsyncExitStack


@final
class RunscContainers:
    """Starts containers in a sandbox that runs, and waits for them, by the command line.

    It is a :class:`~corral_worker.sandbox.containers.Containers`, and raises what is said
    there. It owns the processes it has started: they are gone when its block has ended.

    Args:
        runsc: the runtime.
        sandbox: id of the sandbox.
        directory: the sandbox's own, in which each container gets its bundle.
    """

    way: StartWay = "command_line"

    def __init__(self, runsc: Runsc, sandbox: str, directory: Path) -> None:
        self._runsc = runsc
        self._sandbox = sandbox
        self._directory = directory
        self._containers: dict[str, _Container] = {}
        self._owned = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Return the containers themselves."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill and reap what still runs; the containers end with their sandbox."""
        await self._owned.aclose()

    async def create(self, container: str, *, within_s: float) -> None:
        """Make the directories: runsc itself can do nothing before it knows the program."""
        with anyio.fail_after(within_s):
            await in_thread(_make, self._directory / container)

    async def start(
        self, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        """Start a container that was created; its program may have ended when this returns."""
        bundle = self._directory / container
        config = oci_config(msgspec.structs.replace(spec, sandbox=self._sandbox))
        try:
            with anyio.fail_after(within_s):
                try:
                    await in_thread(_write, bundle, config)
                    started = await self._run(container, bundle, streams)
                except (OSError, RunscError) as error:
                    raise SandboxGoneError(f"runsc run was not started: {error}") from error
                self._containers[container] = started
                ended = await _ended_before(started, self._runsc.state(self._sandbox, container))
        except TimeoutError:
            raise TimeoutError(f"runsc run: no answer within {within_s:g} s") from None
        if ended and _status(started) is None:
            raise await in_thread(_failure, started, spec.job.argv)

    async def wait(self, container: str, *, within_s: float) -> int:
        """Return the wait status of a container's program when it has ended."""
        found = self._known(container)
        try:
            with anyio.fail_after(within_s):
                await found.child.wait()
        except TimeoutError:
            raise TimeoutError(f"runsc run: no end within {within_s:g} s") from None
        status = _status(found)
        if status is None:
            said = await in_thread(_last_words, found)
            raise SandboxLostError(said or "runsc run did not say how the program ended")
        return status

    def last_words(self, container: str) -> bytes:
        """Return what runsc has logged at its end: it writes that to the program's stderr, too."""
        found = self._containers.get(container)
        said = _last_words(found) if found else ""
        return f"{said}\n".encode() if said else b""

    async def destroy(self, container: str, *, within_s: float) -> None:
        """Let go of the process, which has forgotten the container itself at its end."""
        found = self._known(container)
        del self._containers[container]
        with anyio.fail_after(within_s):
            await found.owned.aclose()

    def _known(self, container: str) -> _Container:
        found = self._containers.get(container)
        if found is None:
            raise RefusedError("runsc run", f"there is no container {container}")
        return found

    async def _run(self, container: str, bundle: Path, streams: Streams) -> _Container:
        async with AsyncExitStack() as stack:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            notes = os.open(bundle / "notes.log", flags, 0o600)
            stack.callback(os.close, notes)
            logs = Logs(directory=bundle)
            child = await stack.enter_async_context(
                self._runsc.run(
                    Run(id=container, bundle=bundle),
                    logs,
                    stdin=streams.stdin,
                    stdout=streams.stdout,
                    stderr=streams.stderr,
                    notes=notes,
                )
            )
            owned = stack.pop_all()
            self._owned.push_async_callback(owned.aclose)
        return _Container(child=child, logs=logs, notes=notes, owned=owned)


def _make(bundle: Path) -> None:
    (bundle / ROOT_DIRECTORY).mkdir(parents=True, mode=0o700)


def _write(bundle: Path, config: dict[str, object]) -> None:
    file = bundle / "config.json"
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(msgspec.json.encode(config))


async def _ended_before(container: _Container, state: StateFile) -> bool:
    """Return once the program runs, or else, with True, once ``runsc run`` has ended."""
    while state.status() != "running":
        with anyio.move_on_after(_LOOK_S):
            await container.child.wait()
            return True
    return False


def _status(container: _Container) -> int | None:
    """Return the wait status that runsc has noted: its own exit code hides signals."""
    size = os.fstat(container.notes).st_size
    tail = os.pread(container.notes, _NOTES_BYTES, max(0, size - _NOTES_BYTES))
    found = _STATUS.search(tail)
    return int(found[1]) & 0xFFFF if found else None


def _last_words(container: _Container) -> str:
    try:
        with container.logs.errors.open("rb") as log:
            messages = error_messages(log.read(_ERRORS_BYTES))
    except OSError:
        return ""
    return messages[-1] if messages else ""


def _failure(container: _Container, argv: Sequence[str]) -> RefusedError | SandboxLostError:
    """Return why no program was seen running, and whether it can have run all the same."""
    said = _last_words(container)
    if said.startswith(_NOT_ASKED):
        return SandboxGoneError(f"runsc run: {said}")
    # Before the words of the sandbox stand those of the job.
    asked = f"{_STARTING}starting sub-container [{' '.join(argv)}]: "
    words = said.removeprefix(asked)
    if said.startswith(asked) and words.startswith(_REFUSED):
        return RefusedError("runsc run", words)
    if said.startswith(asked) and words.startswith(_NOBODY_THERE):
        return SandboxGoneError(f"runsc run: {words}")
    return SandboxLostError(f"runsc run: {words or 'ended without a word'}")
