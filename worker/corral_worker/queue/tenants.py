"""The tenants' settings in Redis: read, and changed while workers run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal, cast

import msgspec
from msgspec import structs
from redis.asyncio import Redis

from corral import ErrPolicyUnusable, Rejection, keys
from corral.reaching import reaching
from corral.scripts import Script
from corral_worker.queue.tenant_config import (
    ErrInvalidSetting,
    SettingName,
    TenantConfig,
    decode_policy,
    read_config,
)

Unknown = Literal["open", "closed"]

MOST_LISTED: Final = 100_000
_AT_ONCE = 200
_NUMBERS: tuple[SettingName, ...] = (
    "weight",
    "concurrency",
    "depth",
    "payload_bytes",
    "suspended",
)


class ErrTenantNotFound(Rejection):
    """Raised if no tenant of this name has settings, or ever submitted a job."""

    code = "tenant_not_found"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that hold: a tenant's own, else the defaults. A cap of 0 is none."""

    weight: float
    concurrency: int
    depth: int
    payload_bytes: int
    suspended: bool


class TenantState(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's settings and how many jobs it has."""

    tenant: str
    known: bool
    """Whether it has settings of its own, so that it may submit where only known ones may."""
    may_submit: bool
    own: TenantConfig
    policy_error: str | None = None
    """Why its policy cannot be read, if so: its jobs are refused."""
    holds: Holding
    waiting: int
    """Jobs queued, the delayed ones among them."""
    running: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some tenants, by name."""

    tenants: tuple[TenantState, ...]
    more: bool
    """Whether there are others."""


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for tenants without settings of their own."""

    unknown: Unknown
    """Whether they may submit, and are served, at all."""
    config: TenantConfig


class Tenants:
    """The settings of all tenants. Workers follow a change with their next claim.

    Each call raises :class:`corral.ErrDaemonUnavailable` if Redis does not answer,
    and :class:`corral.ErrInvalidJob` if a name is no tenant's.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._configure = Script(__package__, "configure")
        self._tenants = Script(__package__, "tenants")

    async def set(
        self, tenant: str, config: TenantConfig, *, unset: Collection[SettingName] = ()
    ) -> None:
        """Set what ``config`` sets, and let the defaults hold for what is in ``unset``.

        The tenant is a known one from now on.

        Raises:
            ErrInvalidSetting: a value is none that can be set; nothing was changed.
        """
        await self._change(keys.check_tenant(tenant), dict(config.to_fields()), unset)

    async def remove(self, tenant: str) -> bool:
        """Forget a tenant's settings; False if it had none. Its jobs stay.

        Where only known tenants are served, it is served no longer.
        """
        async with reaching(self._redis):
            reply = await self._configure.run(self._redis, keys.check_tenant(tenant), "remove", 0)
        return reply == 1

    async def show(self, tenant: str) -> TenantState:
        """Return a tenant's settings and how many jobs it has.

        Raises:
            ErrTenantNotFound: it has no settings, no jobs, and never had any.
        """
        ((state, seen),) = await self._read([keys.check_tenant(tenant)])
        if not (state.known or seen or state.waiting):
            raise ErrTenantNotFound(
                f"there is no tenant {tenant}: it has no settings of its own and never submitted"
                f" a job; corral tenants set {tenant} makes it known",
                context={"tenant": tenant},
            )
        return state

    async def page(self, most: int) -> Page:
        """Return up to ``most`` tenants that were set up or have submitted, in no order kept."""
        names: set[str] = set()
        cursor = 0
        async with reaching(self._redis):
            while True:
                cursor, found = await self._redis.sscan(keys.TENANTS, cursor, count=_AT_ONCE)
                names.update(name.decode(errors="replace") for name in found)
                if not cursor or len(names) > most:
                    break
        listed = sorted(names)[:most]
        states = [
            state
            for first in range(0, len(listed), _AT_ONCE)
            for state, _ in await self._read(listed[first : first + _AT_ONCE])
        ]
        return Page(tenants=tuple(states), more=len(names) > most)

    async def defaults(self) -> Defaults:
        """Return what holds for tenants without settings of their own."""
        async with reaching(self._redis):
            values = cast(
                "Sequence[bytes | None]",
                await self._redis.hmget(keys.DEFAULTS, ["unknown", *_NUMBERS]),  # type: ignore[misc]
            )
        fields = dict(zip(_NUMBERS, values[1:], strict=True))
        return Defaults(
            unknown="closed" if values[0] == b"closed" else "open",
            config=read_config({name: value or b"" for name, value in fields.items()}),
        )

    async def set_defaults(
        self,
        config: TenantConfig,
        *,
        unknown: Unknown | None = None,
        unset: Collection[SettingName] = (),
    ) -> None:
        """Set what holds for tenants without settings of their own, and who may submit.

        Raises:
            ErrInvalidSetting: a value is none that can be set; nothing was changed.
        """
        if config.policy is not None:
            raise ErrInvalidSetting(
                "policy: what holds for all tenants is in the workers' settings, policy.ceilings"
            )
        fields = dict(config.to_fields())
        if unknown is not None:
            fields["unknown"] = unknown
        await self._change("", fields, unset)

    async def _change(
        self, tenant: str, fields: dict[str, str | bytes], unset: Collection[SettingName]
    ) -> None:
        if both := fields.keys() & set(unset):
            raise ErrInvalidSetting(f"{', '.join(sorted(both))}: set it, or unset it, not both")
        words = [word for field in fields.items() for word in field]
        async with reaching(self._redis, retry_safety="unknown"):
            await self._configure.run(self._redis, tenant, "set", len(unset), *unset, *words)

    async def _read(self, tenants: Iterable[str]) -> list[tuple[TenantState, bool]]:
        async with reaching(self._redis):
            reply = await self._tenants.run(self._redis, *tenants)
        return [_state(fields) for fields in cast("list[Sequence[bytes | int]]", reply)]


def _state(fields: Sequence[bytes | int]) -> tuple[TenantState, bool]:
    """Return a tenant's state, and whether it was ever heard of."""
    texts = cast("Sequence[bytes]", fields)
    tenant = texts[0].decode(errors="replace")
    known, seen, closed = map(bool, fields[1:4])
    own = read_config(dict(zip(_NUMBERS, texts[4:9], strict=True)))
    problem: str | None = None
    if texts[9]:
        try:
            own = structs.replace(own, policy=decode_policy(texts[9], tenant=tenant))
        except ErrPolicyUnusable as error:
            problem = error.detail
    weight, concurrency, depth, payload = map(float, fields[10:14])
    state = TenantState(
        tenant=tenant,
        known=known,
        may_submit=not closed,
        own=own,
        policy_error=problem,
        holds=Holding(
            weight=weight,
            concurrency=int(concurrency),
            depth=int(depth),
            payload_bytes=int(payload),
            suspended=bool(fields[14]),
        ),
        waiting=int(fields[15]),
        running=int(fields[16]),
    )
    return state, seen
