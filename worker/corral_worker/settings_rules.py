"""What types and ranges alone cannot say about a setting. Pure functions of values.

Each yields what is wrong, as the path below the setting and a message.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from corral import CorralError, Policy, PolicyNarrowing, connection, keys
from corral.job import LOWEST
from corral_worker.secret import Secret

DELEGATED: Final = "delegated"
"""The ``cgroup_parent`` that means: below the worker's own cgroup."""
MAX_STATE_DIR_BYTES: Final = 60
"""runsc's control socket lies below it, and a socket's path has room for 107 bytes."""

Finding = tuple[str, str]

_CGROUP = re.compile(r"(?:/[\w@.:\\-]+)+\Z", re.ASCII)


def redis_url(url: Secret) -> Iterator[Finding]:
    """Yield what is wrong with a Redis URL, never quoting it: it may hold a password."""
    try:
        connection.check_url(url.reveal())
    except CorralError as error:
        yield "", error.message


def absolute(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the path of a file or directory."""
    if not path.is_absolute() or ".." in path.parts:
        yield "", f"{str(path)!r} is not an absolute path without '..'"


def state_dir(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the state directory."""
    yield from absolute(path)
    length = len(os.fsencode(path))
    if length > MAX_STATE_DIR_BYTES:
        message = (
            f"{length} bytes long, at most {MAX_STATE_DIR_BYTES} are accepted: gVisor's control"
            " sockets lie below it, and the path of a socket has room for 107 bytes"
        )
        yield "", message


def cgroup_parent(name: str) -> Iterator[Finding]:
    """Yield what is wrong with the cgroup of the sandboxes."""
    if name == DELEGATED:
        return
    if not _CGROUP.match(name) or {".", ".."} & set(name.split("/")):
        message = (
            f"{name!r} is no cgroup path; use an absolute path in the cgroup tree such as"
            f" '/corral', or {DELEGATED!r} for one below the worker's own cgroup"
        )
        yield "", message


def policy(value: Policy) -> Iterator[Finding]:
    """Yield what is wrong with the operator's policy."""
    yield from _networks(value.networks)
    if "none" not in value.networks:
        yield "networks", "lacks 'none', so that no job could run; use ['none']"
    yield from _numbers("defaults", value.defaults)
    yield from _numbers("ceilings", value.ceilings)


def tenants(narrowings: Mapping[str, PolicyNarrowing]) -> Iterator[Finding]:
    """Yield what is wrong with the tenants' names and with what is taken away from them."""
    for tenant, narrowing in narrowings.items():
        try:
            keys.check_tenant(tenant)
        except CorralError as error:
            yield tenant, error.message
            continue
        for path, message in _networks(narrowing.networks or frozenset()):
            yield f"{tenant}.policy.{path}", message
        for path, message in _numbers("ceilings", narrowing.ceilings):
            yield f"{tenant}.policy.{path}", message


def _networks(names: frozenset[str]) -> Iterator[Finding]:
    for name in sorted(names - {"none"}):
        if name == "sandbox":
            yield "networks", "'sandbox': networking is not available yet; use ['none']"
        else:
            yield "networks", f"{name!r} cannot be granted to jobs; use ['none']"


def _numbers(path: str, limits: msgspec.Struct) -> Iterator[Finding]:
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield (
                f"{path}.{name}",
                f"{value} is no limit; use a finite number above 0, or leave it out",
            )
        elif value is not None and value < (lowest := LOWEST.get(name, 0)):
            message = (
                f"{value} is too little for a sandbox to start, so that no job could run; at least"
                f" {lowest} is needed"
            )
            yield f"{path}.{name}", message
