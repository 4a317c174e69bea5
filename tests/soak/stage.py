"""What a soak happens on: a Redis, a worker that gets killed, and the host around them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

_READY_WITHIN_S = 120.0
_STOPPED_WITHIN_S = 120.0


class Stage:
    """The worker of a soak and its traces on the host.

    Args:
        directory: for all files, used by nothing else.
        environ: settings of the worker, beyond those that follow from the directory.
    """

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self._directory = directory
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self.parent = f"/corral-soak-{os.getpid()}"
        self.state = directory / "state"
        self.state.mkdir()
        self.log = directory / "worker.log"
        self.url = f"unix://{directory}/redis.sock"
        self._environ = {
            "PATH": os.environ["PATH"],
            "CORRAL_REDIS_URL": self.url,
            "CORRAL_STATE_DIR": str(self.state),
            "CORRAL_IMAGE_DIR": "/var/lib/corral/images",
            "CORRAL_CGROUP_PARENT": self.parent,
            "CORRAL_LOG_FORMAT": "json",
            **environ,
        }

    async def start_redis(self) -> None:
        """Start a Redis of the soak's own."""
        binary = shutil.which("redis-server")
        assert binary is not None, "redis-server is not installed: make setup-test installs it"
        socket = self._directory / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(socket), "--save", "")
        files = ("--dir", str(self._directory), "--logfile", str(self._directory / "redis.log"))
        self._redis = subprocess.Popen([binary, *options, *files])  # noqa: ASYNC220 - killed in close
        with anyio.fail_after(_READY_WITHIN_S):
            while not socket.exists():
                await anyio.sleep(0.01)

    async def start_worker(self) -> None:
        """Start a worker, and wait until it takes jobs."""
        with self.log.open("ab") as log:
            begin = log.tell()
            self._worker = subprocess.Popen(  # noqa: ASYNC220 - as above
                [sys.executable, "-m", "corral_worker", "worker"], env=self._environ, stderr=log
            )
        with anyio.fail_after(_READY_WITHIN_S):
            while b'"worker.ready"' not in self.log.read_bytes()[begin:]:
                assert self._worker.poll() is None, self.log.read_text()[-4000:]
                await anyio.sleep(0.05)

    async def kill_worker(self) -> None:
        """SIGKILL the worker."""
        assert self._worker is not None
        self._worker.kill()
        await anyio.to_thread.run_sync(self._worker.wait, abandon_on_cancel=True)

    async def stop_worker(self) -> int:
        """SIGTERM the worker and return its exit code."""
        assert self._worker is not None
        self._worker.terminate()
        with anyio.fail_after(_STOPPED_WITHIN_S):
            return await anyio.to_thread.run_sync(self._worker.wait, abandon_on_cancel=True)

    def kill_a_runsc(self, chance: random.Random) -> str:
        """SIGKILL one of the worker's runsc processes, and return what it was."""
        pids = [pid for pid, command in self._processes() if command[:1] != [sys.executable]]
        if not pids:
            return ""
        pid = chance.choice(pids)
        try:
            command = Path(f"/proc/{pid}/comm").read_text().strip()
            os.kill(pid, signal.SIGKILL)
        except (OSError, ProcessLookupError):
            return ""
        return command

    def descriptors(self) -> int:
        """Return how many files, pipes and the like the worker has open; sockets do not count."""
        assert self._worker is not None
        count = 0
        for link in Path(f"/proc/{self._worker.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                count += not str(link.readlink()).startswith("socket:")
        return count

    def peak_memory_mb(self) -> float:
        """Return the most memory the present worker has had."""
        assert self._worker is not None
        status = Path(f"/proc/{self._worker.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    def leftovers(self) -> dict[str, list[str]]:
        """Return what is on the host of sandboxes, once the worker has stopped."""
        name = self.parent.lstrip("/")
        mounts = Path("/proc/mounts").read_text().splitlines()
        return {
            "processes": [" ".join(command) for _, command in self._processes()],
            "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}/**")],
            "mounts": [line for line in mounts if str(self._directory) in line],
            "files": [str(path) for path in self.state.glob("w-*")],
        }

    def close(self) -> None:
        """End all processes."""
        for process in (self._worker, self._redis):
            if process is not None:
                process.kill()
                process.wait()

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the worker's log entries of one kind."""
        entries = []
        for line in self.log.read_bytes().splitlines():
            try:
                entry = msgspec.json.decode(line, type=dict[str, object])
            except msgspec.DecodeError:
                continue  # of a worker that was killed while it wrote
            if entry.get("event") == name:
                entries.append(entry)
        return entries

    def _processes(self) -> list[tuple[int, list[str]]]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(self.state) in word for word in words):
                found.append((int(process.name), words))
        return found
