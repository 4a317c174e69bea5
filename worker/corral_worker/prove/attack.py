"""An attack as data: what runs in the sandbox, and what must be true afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from corral import CorralError, Job, Limits, Policy, Result

MOST_SLOWNESS = 30.0
"""On a machine that is slower still attacks would ask for more than the default policy grants."""

_MIB = 1024**2


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack may know of the host, and how fast that is."""

    secret: str
    """Stands in the host's environment and files. No attack is told it."""
    variable: str
    """Name of the environment variable that holds the secret."""
    directory: str
    """Directory on the host, readable by all: see :class:`~corral_worker.prove.lures.Lures`."""
    port: int
    """A TCP and a UDP port of the host's loopback interface."""
    abstract: str
    """Name of an abstract Unix socket of the host."""
    process: int
    """Pid of a process of the host."""
    slowness: float = 1.0
    """How many times slower this machine is than a usual one."""

    def seconds(self, usual: float) -> float:
        """Return how long something may take here."""
        return usual * self.slowness

    def sized(self, usual: int) -> int:
        """Return how much of something is to be done here."""
        return max(1, int(usual / self.slowness))

    def limits(
        self,
        *,
        wall_s: float = 60.0,
        memory_bytes: int = 128 * _MIB,
        pids: int = 32,
        disk_bytes: int = 16 * _MIB,
        output_bytes: int = 256 * 1024,
    ) -> Limits:
        """Return an attack's limits; the wall limit is for a usual machine."""
        return Limits(
            wall_s=self.seconds(wall_s),
            cpu_time_s=self.seconds(120.0),
            cpus=1.0,
            memory_bytes=memory_bytes,
            pids=pids,
            disk_bytes=disk_bytes,
            output_bytes=output_bytes,
        )


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of an attack, from the host."""

    scene: Scene
    ending: Result | CorralError | None
    """None if it did not end in time."""
    left: tuple[str, ...] = ()
    """What was still there of the sandbox when its result was."""
    harm: tuple[str, ...] = ()
    """What is not as it was on the host: a lure that was touched, a clock that was set."""
    neighbour: Result | CorralError | None = None
    """How an innocent job ended that ran beside, if one did."""
    worker_growth_bytes: int | None = None
    """How much this process grew at most, if nothing else ran."""


Judge = Callable[[Observed], Iterator[str]]
"""Yields what is wrong; nothing if the attack failed as it should."""


class Attack(msgspec.Struct, frozen=True, kw_only=True):
    """One attack."""

    name: str
    expected: str
    """How it should end, in a few words."""
    job: Callable[[Scene], Job]
    """Makes the job. That it is refused right here counts as an ending."""
    judge: Judge
    policy: Policy = Policy()
    """The operator's, for this attack."""
    neighbour: bool = False
    """Whether an innocent job runs beside it, which must not suffer."""
    alone: bool = False
    """Whether no other attack runs at the time, so that this process's memory can be measured."""
    stall_s: float = 0.0
    """Seconds for which this process again and again reads nothing while the attack runs."""
