"""What jobs may ask for.

A pure function of a job and a policy: it runs in the caller at submit, for
fast feedback, and again in the worker before the host is touched, which is
the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import msgspec

from corral.errors import ErrSecurityViolation, Violation
from corral.job import Job, Limits
from corral.result import EffectiveLimits

NETWORKS = frozenset({"none", "sandbox"})
"""Networks there are; ``host`` is known only to be refused."""
HOST_OWNED_FIELDS = frozenset({"runsc_path", "root_dir", "platform", "runsc_flags"})
"""Settings of the host that a job can never make."""

_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SHOWN = 80


class LimitSet(EffectiveLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits as an operator writes them: a mistyped name is an error."""


_CEILINGS = LimitSet(
    wall_s=3600,
    cpu_time_s=3600,
    cpus=2,
    memory_bytes=2 * 1024**3,
    pids=1024,
    disk_bytes=1024**3,
    file_bytes=1024**3,
    output_bytes=16 * 1024**2,
    output_kill_bytes=1024**4,
    open_files=65_535,
)


class PolicyNarrowing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant's own policy takes away from the operator's. It can add nothing."""

    networks: frozenset[str] | None = None
    env_denied: tuple[str, ...] = ()
    ceilings: Limits = Limits()


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the jobs of a tenant may ask for.

    Safe as it stands: no network, no root, a read-only root file system.
    """

    networks: frozenset[str] = frozenset({"none"})
    """Networks granted, out of ``none`` and ``sandbox``."""
    env_denied: tuple[str, ...] = ("CORRAL_*", "RUNSC_*", "NOTIFY_SOCKET")
    """Patterns of environment names that jobs may not set."""
    defaults: LimitSet = LimitSet()
    """Limits of a job that names none."""
    ceilings: LimitSet = _CEILINGS
    """Highest limits a job may name."""

    def narrowed(self, by: PolicyNarrowing) -> Policy:
        """Return this policy less what ``by`` takes away; never more than this one."""
        return Policy(
            networks=self.networks if by.networks is None else self.networks & by.networks,
            env_denied=tuple(dict.fromkeys((*self.env_denied, *by.env_denied))),
            defaults=self.defaults,
            ceilings=_combine(by.ceilings, self.ceilings),
        )

    def limits(self, requested: Limits) -> EffectiveLimits:
        """Return the limits that hold for a job: as asked, else the default, under the ceiling."""
        values = {
            name: min(
                getattr(self.ceilings, name),
                getattr(self.defaults, name)
                if getattr(requested, name) is None
                else getattr(requested, name) or getattr(self.ceilings, name),
            )
            for name in EffectiveLimits.__struct_fields__
        }
        return EffectiveLimits(**values)

    def enforce(self, job: Job) -> EffectiveLimits:
        """Return the job's effective limits.

        Raises:
            ErrSecurityViolation: the job breaks rules; all of them are listed.
        """
        if violations := self.check(job):
            raise ErrSecurityViolation(violations)
        return self.limits(job.limits)

    def check(self, job: Job) -> tuple[Violation, ...]:
        """Return every rule the job breaks, in a fixed order. Touches nothing outside."""
        return (
            *_isolation(job),
            *self._network(job),
            *_host(job),
            *self._environment(job),
            *self._limits(job),
        )

    def _network(self, job: Job) -> Iterator[Violation]:
        granted = ", ".join(sorted(self.networks)) or "nothing"
        if job.network.casefold() == "host":
            yield _violation("host_network", "$.network", job.network, granted)
        elif job.network not in NETWORKS:
            yield _violation("unknown_network", "$.network", job.network, granted)
        elif job.network not in self.networks:
            yield _violation("network_not_permitted", "$.network", job.network, granted)

    def _environment(self, job: Job) -> Iterator[Violation]:
        for name in job.env:
            if not _ENV_KEY.match(name):
                allowed = "names of letters, digits and _"
            elif any(fnmatchcase(name, pattern) for pattern in self.env_denied):
                allowed = f"names other than {', '.join(self.env_denied)}"
            else:
                continue
            yield _violation("env_forbidden", "$.env", name, allowed)

    def _limits(self, job: Job) -> Iterator[Violation]:
        for name in Limits.__struct_fields__:
            requested = getattr(job.limits, name)
            ceiling = getattr(self.ceilings, name)
            if requested is None or 0 < requested <= ceiling:
                continue
            value = str(requested) if requested else "0 (unlimited)"
            yield _violation(
                "limit_exceeds_tenant", f"$.limits.{name}", value, f"more than 0, up to {ceiling}"
            )


def _isolation(job: Job) -> Iterator[Violation]:
    if job.privileged:
        yield _violation("privileged", "$.privileged", "true", "false")
    if 0 in job.ids():
        yield _violation("root_user", "$.user", job.user, "nobody, or UID:GID other than 0")
    if not job.read_only_root:
        yield _violation("writable_rootfs", "$.read_only_root", "false", "true")
    if job.seccomp != "default":
        yield _violation("seccomp", "$.seccomp", job.seccomp, "default")
    if job.capabilities:
        yield _violation("capabilities", "$.capabilities", ", ".join(job.capabilities), "none")


def _host(job: Job) -> Iterator[Violation]:
    for index, mount in enumerate(job.mounts):
        value = f"{mount.source} on {mount.target}"
        yield _violation("host_mount", f"$.mounts[{index}]", value, "no host directory")
    for name in job.host_settings:
        yield _violation("host_owned_field", f"$.{name}", "set", "only the operator sets it")


def _violation(rule: str, field: str, value: str, allowed: str) -> Violation:
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return Violation(rule=rule, field=field, value=shown, allowed=allowed)


def _combine(narrowing: Limits, ceilings: LimitSet) -> LimitSet:
    values = {
        name: min(getattr(narrowing, name) or ceiling, ceiling)
        for name in EffectiveLimits.__struct_fields__
        for ceiling in (getattr(ceilings, name),)
    }
    return LimitSet(**values)
