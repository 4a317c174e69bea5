"""What an operator can set for a tenant, as types and as it stands in Redis."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from corral import CorralError, ErrPolicyUnusable, PolicyNarrowing, Rejection
from corral.job_codec import MAX_PAYLOAD_BYTES
from corral_worker import settings_rules

MOST_POLICY_BYTES: Final = 64 * 1024
"""Most bytes of a policy; a claim reads no more."""

_ANY_TENANT = "any"


class ErrInvalidSetting(Rejection):
    """Raised if a tenant cannot be set up so. Nothing was changed."""

    code = "invalid_setting"


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a tenant; None is not set: the default holds. A cap of 0 is none."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] | None = None
    """Share of the workers' time, in proportion to other tenants that have jobs."""
    concurrency: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """Most jobs that run at one time, over all workers."""
    depth: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    """Most jobs queued or running at one time."""
    payload_bytes: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD_BYTES)] | None = None
    """Most bytes of one encoded job."""
    suspended: bool | None = None
    """Whether its jobs wait. Those that run go on."""
    policy: PolicyNarrowing | None = None
    """What its jobs may not ask for, though the workers' settings allow it."""

    def to_fields(self) -> Iterator[tuple[str, str | bytes]]:
        """Yield name and value of each setting that is set, as it stands in Redis.

        Raises:
            ErrInvalidSetting: a value is none that can be set.
        """
        self._check()
        for name in self.__struct_fields__:
            match getattr(self, name):
                case None:
                    pass
                case bool(value):
                    yield name, str(int(value))
                case PolicyNarrowing() as policy:
                    yield name, _encode(policy)
                case value:
                    yield name, repr(value)

    def _check(self) -> None:
        try:
            # msgspec checks what it decodes, not what a constructor is given.
            msgspec.convert(msgspec.to_builtins(self), TenantConfig)
        except (ValueError, CorralError) as error:
            raise ErrInvalidSetting(_in_words(error)) from error


SettingName = Literal["weight", "concurrency", "depth", "payload_bytes", "suspended", "policy"]


def read_config(fields: Mapping[str, bytes]) -> TenantConfig:
    """Return the settings that stand in Redis, without the policy.

    What is no number counts as not set, as the scripts have it.
    """
    weight, concurrency, depth, payload, suspended = (
        _number(fields.get(name, b""))
        for name in ("weight", "concurrency", "depth", "payload_bytes", "suspended")
    )
    return TenantConfig(
        weight=weight,
        concurrency=None if concurrency is None else int(concurrency),
        depth=None if depth is None else int(depth),
        payload_bytes=None if payload is None else int(payload),
        suspended=None if suspended is None else suspended != 0,
    )


def decode_policy(data: bytes, *, tenant: str) -> PolicyNarrowing:
    """Return what a tenant's policy, as it stands in Redis, takes away.

    Raises:
        ErrPolicyUnusable: it cannot be read. ``detail`` says why.
    """
    if not data:
        return PolicyNarrowing()
    try:
        return msgspec.json.decode(data, type=PolicyNarrowing)
    except (ValueError, RecursionError, CorralError) as error:
        raise ErrPolicyUnusable(
            f"the policy kept for tenant {tenant} cannot be read: its jobs are refused until the"
            " operator sets it again",
            detail=_in_words(error),
            context={"tenant": tenant},
        ) from error


def parse_policy(text: bytes, *, kind: Literal["toml", "json"]) -> PolicyNarrowing:
    """Return the policy that a file says, with the keys of ``[tenants.NAME.policy]``.

    Raises:
        ErrInvalidSetting: it is malformed, or says what cannot hold.
    """
    try:
        table: object = (
            tomllib.loads(text.decode()) if kind == "toml" else msgspec.json.decode(text)
        )
        policy = msgspec.convert(table, PolicyNarrowing)
    except (ValueError, RecursionError, CorralError) as error:
        raise ErrInvalidSetting(f"policy: {_in_words(error)}") from error
    findings = [
        f"{path.removeprefix(f'{_ANY_TENANT}.')}: {message}"
        for path, message in settings_rules.tenants({_ANY_TENANT: policy})
    ]
    if findings:
        raise ErrInvalidSetting("; ".join(findings))
    return policy


def _encode(policy: PolicyNarrowing) -> bytes:
    data = msgspec.json.encode(policy, order="deterministic")
    if len(data) > MOST_POLICY_BYTES:
        raise ErrInvalidSetting(
            f"policy: it has {len(data)} bytes, at most {MOST_POLICY_BYTES} are accepted"
        )
    return data


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _in_words(error: Exception) -> str:
    message, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    return f"{path}: {message}".removeprefix(": ").replace("`", "")
