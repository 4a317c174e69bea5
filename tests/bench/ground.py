"""What benchmarks stand on: a directory, processes and cgroups of their own, and no trace after."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread

from corral_worker.sandbox.cgroup import CgroupError, remove_below
from corral_worker.sandbox.cgroup_host import CgroupHost

_STOP_WITHIN_S = 60.0
_GONE_WITHIN_S = 10.0


class Ground:
    """Starts processes, and knows how to be rid of all that they left.

    Args:
        directory: for all files, used by nothing else; its path is in the command line of
            every process, by which those that were left are found.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parent = f"/corral-bench-{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        cgroups = CgroupHost.of_this_host(self.parent)
        cgroups.prepare()
        self.cgroup_version = cgroups.version

    def start(
        self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process that is stopped with this, or by the kernel should this be killed."""
        with log.open("ab") as stream:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                # Ctrl-C is for this process: the others are stopped in their order.
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def start_redis(self, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
        """Start a Redis without persistence; return it and its URL once it listens."""
        socket = directory / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(socket), "--save", "")
        process = self.start(
            ["redis-server", *options, "--dir", str(directory)], directory / "redis.log"
        )
        until = time.monotonic() + _GONE_WITHIN_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((directory / "redis.log").read_text())
            time.sleep(0.01)
        return process, f"unix://{socket}"

    async def stop(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Stop processes, all at the same time, and wait until they have ended."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stop, processes)

    def _stop(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # It may be stopped twice, by whoever is interrupted and then by the end of all.
            if process in self._processes:
                self._processes.remove(process)

    def close(self) -> None:
        """Leave nothing on the host."""
        for process in reversed(self._processes[:]):
            self._stop([process])
        until = time.monotonic() + _GONE_WITHIN_S
        while time.monotonic() < until:
            pids, cgroups = [*self._left()], [*self._cgroups()]
            if not pids and not cgroups:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for cgroup in cgroups:
                with suppress(CgroupError):
                    remove_below(cgroup)
            time.sleep(0.02)
        shutil.rmtree(self.directory)

    def _cgroups(self) -> Iterator[Path]:
        for pattern in (self.parent.lstrip("/"), "*" + self.parent):
            yield from Path("/sys/fs/cgroup").glob(pattern)

    def _left(self) -> Iterator[int]:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.directory).encode() in (process / "cmdline").read_bytes():
                    yield int(process.name)


@contextmanager
def ground() -> Iterator[Ground]:
    """Give a ground, and clear it on any way out that a process can see."""
    # Deep directories are too long for the paths of sockets.
    made = Ground(Path(tempfile.mkdtemp(prefix="corral-bench-")))
    try:
        yield made
    finally:
        made.close()
