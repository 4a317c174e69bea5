"""What a person is shown of tenants. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from corral import PolicyNarrowing
from corral_worker.cli.text import printable
from corral_worker.cli.units import size_text
from corral_worker.queue.tenants import Defaults, TenantState

COLUMNS = (
    "tenant",
    "waiting",
    "running",
    "weight",
    "concurrency",
    "depth",
    "payload",
    "policy",
    "state",
)


def row(state: TenantState) -> tuple[str, ...]:
    """Return a tenant's line in a list of many."""
    holds = state.holds
    return (
        printable(state.tenant),
        str(state.waiting),
        str(state.running),
        f"{holds.weight:g}",
        _cap(holds.concurrency),
        _cap(holds.depth),
        _size(holds.payload_bytes),
        _policy_word(state),
        _state(state),
    )


def state_rows(state: TenantState) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and origin of everything there is to say of one tenant."""
    own, holds = state.own, state.holds
    yield "tenant", printable(state.tenant), ""
    yield "state", _state(state), _origin(own.suspended)
    yield "weight", f"{holds.weight:g}", _origin(own.weight)
    yield "concurrency", _cap(holds.concurrency), _origin(own.concurrency)
    yield "depth", _cap(holds.depth), _origin(own.depth)
    yield "payload", _size(holds.payload_bytes), _origin(own.payload_bytes)
    if state.policy_error is not None:
        text = f"cannot be read, so all its jobs are refused: {printable(state.policy_error)}"
        yield "policy", text, "own"
    else:
        for name, value in _policy_rows(own.policy):
            yield name, value, "own"
    yield "jobs waiting", str(state.waiting), ""
    yield "jobs running", str(state.running), ""


def default_rows(defaults: Defaults) -> Iterator[tuple[str, str]]:
    """Yield name and value of what holds for tenants without settings of their own."""
    config = defaults.config
    yield (
        "unknown tenants",
        "open: they may submit" if defaults.unknown == "open" else "closed: they may not submit",
    )
    yield "state", "suspended" if config.suspended else "active"
    yield "weight", "1" if config.weight is None else f"{config.weight:g}"
    yield "concurrency", _cap(config.concurrency or 0)
    yield "depth", _cap(config.depth or 0)
    yield "payload", _size(config.payload_bytes or 0)


def _policy_rows(policy: PolicyNarrowing | None) -> Iterator[tuple[str, str]]:
    if policy is None:
        return
    found: dict[str, object] = msgspec.to_builtins(policy, order="deterministic")
    for name, value in found.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                yield f"policy.{name}.{inner}", printable(str(number))
        elif isinstance(value, list | tuple) and (value or name == "networks"):
            yield f"policy.{name}", printable(", ".join(map(str, value)) or "none at all")


def _policy_word(state: TenantState) -> str:
    if state.policy_error is not None:
        return "unreadable"
    return "-" if state.own.policy is None else "narrowed"


def _state(state: TenantState) -> str:
    words = []
    if state.holds.suspended:
        words.append("suspended")
    if not state.may_submit:
        words.append("closed out, as it has no settings")
    return ", ".join(words) or "active"


def _origin(value: object) -> str:
    return "default" if value is None else "own"


def _cap(number: int) -> str:
    return str(number) if number > 0 else "no cap"


def _size(count: int) -> str:
    return size_text(count) if count > 0 else "no cap"
