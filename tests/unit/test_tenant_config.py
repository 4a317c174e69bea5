"""What can be set for a tenant, and how it stands in Redis."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral import ErrPolicyUnusable, Job, Limits, Policy, PolicyNarrowing
from corral.job_codec import MAX_PAYLOAD_BYTES
from corral_worker.queue.tenant_config import (
    ErrInvalidSetting,
    TenantConfig,
    decode_policy,
    parse_policy,
    read_config,
)

POLICY = PolicyNarrowing(
    networks=frozenset({"none"}), env_denied=("AWS_*",), ceilings=Limits(wall_s=5)
)


def fields(config: TenantConfig) -> dict[str, bytes]:
    return {
        name: value if isinstance(value, bytes) else value.encode()
        for name, value in config.to_fields()
    }


@given(
    st.builds(
        TenantConfig,
        weight=st.none() | st.floats(0.001, 1000),
        concurrency=st.none() | st.integers(0, 1_000_000),
        depth=st.none() | st.integers(0, 1_000_000_000),
        payload_bytes=st.none() | st.integers(0, MAX_PAYLOAD_BYTES),
        suspended=st.none() | st.booleans(),
    )
)
def test_what_is_set_is_read_again(config: TenantConfig) -> None:
    assert read_config(fields(config)) == config


def test_a_policy_is_read_again() -> None:
    stored = fields(TenantConfig(policy=POLICY))

    assert list(stored) == ["policy"]
    assert decode_policy(stored["policy"], tenant="acme") == POLICY


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (TenantConfig(weight=0), "weight"),
        (TenantConfig(weight=1001), "weight"),
        (TenantConfig(weight=float("nan")), "weight"),
        (TenantConfig(weight=float("inf")), "weight"),
        (TenantConfig(concurrency=-1), "concurrency"),
        (TenantConfig(depth=-1), "depth"),
        (TenantConfig(payload_bytes=MAX_PAYLOAD_BYTES + 1), "payload_bytes"),
        (TenantConfig(policy=PolicyNarrowing(env_denied=("x" * 70_000,))), "policy"),
    ],
)
def test_what_cannot_hold_is_refused_by_name(config: TenantConfig, field: str) -> None:
    with pytest.raises(ErrInvalidSetting, match=f"^{field}: "):
        list(config.to_fields())


def test_what_is_no_number_counts_as_not_set() -> None:
    stored = dict.fromkeys(("weight", "concurrency", "depth", "suspended"), b"many")

    assert TenantConfig(payload_bytes=7) == read_config({**stored, "payload_bytes": b"7"})


@pytest.mark.parametrize(
    "stored",
    [
        b"!",
        b"null",
        b"[]",
        b'{"ceilings":{"wall_s":"5"}}',
        b'{"ceilings":{"wall_s":-1}}',
        b'{"ceilings":{"memory_bytes":1}}',
        b'{"celings":{}}',
        b'{"networks":"none"}',
        b"\xff",
        b"[" * 60_000,
    ],
)
def test_a_policy_that_cannot_be_read_is_an_error_and_never_an_empty_one(stored: bytes) -> None:
    with pytest.raises(ErrPolicyUnusable, match="tenant acme") as caught:
        decode_policy(stored, tenant="acme")

    assert (caught.value.retry_safety, caught.value.context["tenant"]) == ("not_started", "acme")
    assert caught.value.detail


def test_no_policy_takes_nothing_away() -> None:
    assert Policy() == Policy().narrowed(decode_policy(b"", tenant="acme"))


@given(
    st.builds(
        Limits,
        wall_s=st.none() | st.floats(0, 600_000),
        pids=st.none() | st.integers(0, 100_000),
    ),
    st.none() | st.frozensets(st.sampled_from(["none", "sandbox", "host"])),
)
def test_a_stored_policy_can_only_narrow(ceilings: Limits, networks: frozenset[str] | None) -> None:
    narrowing = PolicyNarrowing(networks=networks, ceilings=ceilings)
    stored = fields(TenantConfig(policy=narrowing))["policy"]
    policy = Policy().narrowed(decode_policy(stored, tenant="acme"))

    assert policy.networks <= Policy().networks
    assert policy.ceilings.wall_s <= Policy().ceilings.wall_s
    assert policy.ceilings.pids <= Policy().ceilings.pids
    refused = Policy().check(Job(argv=("true",), network="host"))
    assert {violation.rule for violation in refused} <= {
        violation.rule for violation in policy.check(Job(argv=("true",), network="host"))
    }


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "toml",
            b'networks = ["none"]\nenv_denied = ["AWS_*"]\n[ceilings]\nwall_s = 5\n',
        ),
        (
            "json",
            b'{"networks": ["none"], "env_denied": ["AWS_*"], "ceilings": {"wall_s": 5}}',
        ),
    ],
)
def test_a_file_says_a_policy(kind: Literal["toml", "json"], text: bytes) -> None:
    assert parse_policy(text, kind=kind) == POLICY


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("toml", b"wall_s = 5", "wall_s"),
        ("toml", b"[ceilings]\nwall_s = true", "ceilings.wall_s"),
        ("toml", b"[ceilings]\nwall_s = 0", "ceilings.wall_s"),
        ("toml", b'networks = ["host"]', "networks"),
        ("toml", b"= 5", "policy"),
        ("toml", b"\xff", "policy"),
        ("json", b"{", "policy"),
        ("json", b'{"ceilings": {"memory_bytes": 1}}', "too little"),
    ],
)
def test_a_file_that_cannot_hold_is_refused(
    kind: Literal["toml", "json"], text: bytes, said: str
) -> None:
    with pytest.raises(ErrInvalidSetting, match=said):
        parse_policy(text, kind=kind)
