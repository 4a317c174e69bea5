"""The policy: every rule, alone and with others, and what holds for any job."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral import (
    EffectiveLimits,
    ErrSecurityViolation,
    Job,
    Limits,
    Mount,
    Policy,
    PolicyNarrowing,
    Violation,
)
from corral.job import LOWEST
from corral.job_codec import decode_job, encode_job
from corral.policy import HOST_OWNED_FIELDS

RUN = ("python3", "-c", "print(6*7)")
LIMITS = EffectiveLimits.__struct_fields__
GRANTING = Policy(networks=frozenset({"none", "sandbox"}))


def test_a_job_that_asks_for_nothing_breaks_no_rule() -> None:
    assert Policy().check(Job(argv=RUN)) == ()


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(Job(argv=RUN, user="1000"), id="a user"),
        pytest.param(Job(argv=RUN, user="1000:1000"), id="a user and a group"),
        pytest.param(Job(argv=RUN, user=""), id="the default user"),
        pytest.param(Job(argv=RUN, env={"PATH": "/bin", "_x1": ""}), id="an environment"),
        pytest.param(Job(argv=RUN, limits=Limits(wall_s=3600, pids=1)), id="limits at the ceiling"),
    ],
)
def test_what_is_permitted_breaks_no_rule(job: Job) -> None:
    assert Policy().check(job) == ()


@pytest.mark.parametrize(
    ("job", "rule", "field"),
    [
        (Job(argv=RUN, privileged=True), "privileged", "$.privileged"),
        (Job(argv=RUN, network="host"), "host_network", "$.network"),
        (Job(argv=RUN, network="HOST"), "host_network", "$.network"),
        (Job(argv=RUN, network="ho\N{LATIN SMALL LETTER LONG S}t"), "host_network", "$.network"),
        (Job(argv=RUN, network="bridge"), "unknown_network", "$.network"),
        (Job(argv=RUN, network=""), "unknown_network", "$.network"),
        (Job(argv=RUN, network="None"), "unknown_network", "$.network"),
        (Job(argv=RUN, network="sandbox"), "network_not_permitted", "$.network"),
        (Job(argv=RUN, user="0"), "root_user", "$.user"),
        (Job(argv=RUN, user="000"), "root_user", "$.user"),
        (Job(argv=RUN, user="root"), "root_user", "$.user"),
        (Job(argv=RUN, user="0:0"), "root_user", "$.user"),
        (Job(argv=RUN, user="1000:0"), "root_user", "$.user"),
        (Job(argv=RUN, user=":0"), "root_user", "$.user"),
        (Job(argv=RUN, user="1000:root"), "root_user", "$.user"),
        (Job(argv=RUN, read_only_root=False), "writable_rootfs", "$.read_only_root"),
        (Job(argv=RUN, seccomp="unconfined"), "seccomp", "$.seccomp"),
        (Job(argv=RUN, seccomp=""), "seccomp", "$.seccomp"),
        (Job(argv=RUN, capabilities=("CAP_CHOWN",)), "capabilities", "$.capabilities"),
        (Job(argv=RUN, mounts=(Mount(source="/", target="/h"),)), "host_mount", "$.mounts[0]"),
        (Job(argv=RUN, env={"1A": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"A=B": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"A\0": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"A\n": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"CORRAL_REDIS_URL": ""}), "env_forbidden", "$.env"),
        (Job(argv=RUN, env={"NOTIFY_SOCKET": ""}), "env_forbidden", "$.env"),
    ],
)
def test_each_rule_is_found_alone(job: Job, rule: str, field: str) -> None:
    assert [(found.rule, found.field) for found in Policy().check(job)] == [(rule, field)]


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_above_the_ceiling_is_refused(name: str) -> None:
    ceiling = getattr(Policy().ceilings, name)
    job = Job(argv=RUN, limits=Limits(**{name: ceiling + 1}))

    (violation,) = Policy().check(job)

    assert violation == Violation(
        rule="limit_exceeds_tenant",
        field=f"$.limits.{name}",
        value=str(ceiling + 1),
        allowed=f"more than 0, up to {ceiling}",
    )


@pytest.mark.parametrize("name", LIMITS)
def test_unlimited_is_refused(name: str) -> None:
    (violation,) = Policy().check(Job(argv=RUN, limits=Limits(**{name: 0})))

    assert (violation.rule, violation.field) == ("limit_exceeds_tenant", f"$.limits.{name}")
    assert violation.value == "0 (unlimited)"


@pytest.mark.parametrize("name", sorted(HOST_OWNED_FIELDS))
@pytest.mark.parametrize("value", [b'"/bin/sh"', b"null", b'["--network=host"]', b"{}"])
def test_a_setting_of_the_host_is_refused_by_name_whatever_its_value(
    name: str, value: bytes
) -> None:
    job = decode_job(b'{"argv": ["sh"], "%s": %s}' % (name.encode(), value))

    (violation,) = Policy().check(job)

    assert (violation.rule, violation.field) == ("host_owned_field", f"$.{name}")


def test_settings_of_the_host_cannot_hide_behind_the_field_that_collects_them() -> None:
    job = decode_job(b'{"argv": ["sh"], "host_settings": {}, "platform": "ptrace"}')

    assert [found.field for found in Policy().check(job)] == ["$.platform"]


def test_all_broken_rules_are_listed_in_a_fixed_order() -> None:
    job = Job(
        argv=RUN,
        privileged=True,
        user="root",
        read_only_root=False,
        seccomp="unconfined",
        capabilities=("CAP_SYS_ADMIN", "CAP_NET_RAW"),
        network="host",
        mounts=(
            Mount(source="/var/run/docker.sock", target="/docker.sock"),
            Mount(source="/proc", target="/proc"),
        ),
        host_settings={"platform": "set"},
        env={"LD PRELOAD": "x", "PATH": "/bin", "RUNSC_DEBUG": "1"},
        limits=Limits(wall_s=0, memory_bytes=2**40),
    )

    with pytest.raises(ErrSecurityViolation) as caught:
        Policy().enforce(job)

    assert [(found.rule, found.field, found.value) for found in caught.value.violations] == [
        ("privileged", "$.privileged", "true"),
        ("root_user", "$.user", "root"),
        ("writable_rootfs", "$.read_only_root", "false"),
        ("seccomp", "$.seccomp", "unconfined"),
        ("capabilities", "$.capabilities", "CAP_SYS_ADMIN, CAP_NET_RAW"),
        ("host_network", "$.network", "host"),
        ("host_mount", "$.mounts[0]", "/var/run/docker.sock on /docker.sock"),
        ("host_mount", "$.mounts[1]", "/proc on /proc"),
        ("host_owned_field", "$.platform", "set"),
        ("env_forbidden", "$.env", "LD PRELOAD"),
        ("env_forbidden", "$.env", "RUNSC_DEBUG"),
        ("limit_exceeds_tenant", "$.limits.wall_s", "0 (unlimited)"),
        ("limit_exceeds_tenant", "$.limits.memory_bytes", str(2**40)),
    ]
    for violation in caught.value.violations:
        assert str(violation) in str(caught.value)


def test_a_network_is_permitted_where_it_is_granted() -> None:
    assert GRANTING.check(Job(argv=RUN, network="sandbox")) == ()


def test_a_grant_of_the_hosts_network_grants_nothing() -> None:
    policy = Policy(networks=frozenset({"host"}))

    assert [found.rule for found in policy.check(Job(argv=RUN, network="host"))] == ["host_network"]


def test_a_tenants_policy_takes_away() -> None:
    policy = GRANTING.narrowed(
        PolicyNarrowing(
            networks=frozenset({"none"}), env_denied=("AWS_*",), ceilings=Limits(wall_s=5)
        )
    )
    job = Job(
        argv=RUN,
        network="sandbox",
        env={"AWS_KEY": "", "CORRAL_X": ""},
        limits=Limits(wall_s=6),
    )

    assert [found.rule for found in policy.check(job)] == [
        "network_not_permitted",
        "env_forbidden",
        "env_forbidden",
        "limit_exceeds_tenant",
    ]


def test_a_tenants_policy_can_add_nothing() -> None:
    wide = PolicyNarrowing(
        networks=frozenset({"none", "sandbox", "host"}), ceilings=Limits(wall_s=604_800, pids=0)
    )

    assert Policy().narrowed(wide) == Policy()


def test_a_job_without_limits_gets_the_defaults() -> None:
    assert Policy().enforce(Job(argv=RUN)) == EffectiveLimits()


def test_a_default_never_exceeds_a_narrowed_ceiling() -> None:
    policy = Policy().narrowed(PolicyNarrowing(ceilings=Limits(wall_s=5, pids=3)))

    limits = policy.enforce(Job(argv=RUN))

    assert (limits.wall_s, limits.pids) == (5, 3)


def test_a_shown_value_is_short() -> None:
    job = Job(argv=RUN, env={"A" * 10_000 + "=": ""})

    assert len(Policy().check(job)[0].value) <= 81


# What holds for any job and any policy.

MANY = settings(max_examples=60)
WORDS = st.text(max_size=8)
NUMBERS = {
    "wall_s": st.floats(0, 604_800),
    "cpu_time_s": st.floats(0, 604_800),
    "cpus": st.floats(0, 1024),
    "memory_bytes": st.integers(0, 2**40),
    "pids": st.integers(0, 100_000),
    "disk_bytes": st.integers(0, 2**40),
    "output_bytes": st.integers(0, 2**26),
    "open_files": st.integers(0, 2**16 - 1),
}
# What a job asks for is 0, or enough for a sandbox to start.
ASKED = NUMBERS | {
    "cpus": st.just(0.0) | st.floats(LOWEST["cpus"], 1024),
    "memory_bytes": st.just(0) | st.integers(int(LOWEST["memory_bytes"]), 2**40),
    "open_files": st.just(0) | st.integers(int(LOWEST["open_files"]), 2**16 - 1),
}
SOME_LIMITS = st.builds(Limits, **{name: st.none() | numbers for name, numbers in ASKED.items()})
CEILINGS = st.builds(
    EffectiveLimits, **{name: numbers.filter(bool) for name, numbers in NUMBERS.items()}
)
NETWORK_SETS = st.frozensets(st.sampled_from(["none", "sandbox", "host", "bridge"]))
PATTERNS = st.lists(st.sampled_from(["A*", "*", "?", "[ab]*", "[", "CORRAL_*"]) | WORDS, max_size=3)
JOBS = st.builds(
    Job,
    argv=st.just(RUN),
    network=st.sampled_from(["none", "sandbox", "host", "Host"]) | WORDS,
    user=st.sampled_from(["", "nobody", "root", "0", "1000", "1000:0", "1:2", ":0", "nobody:5"]),
    env=st.dictionaries(
        st.sampled_from(["A", "AB", "b", "CORRAL_X"]) | WORDS, st.just("s3cret-value"), max_size=4
    ),
    limits=SOME_LIMITS,
    privileged=st.booleans(),
    read_only_root=st.booleans(),
    seccomp=st.just("default") | WORDS,
    capabilities=st.lists(WORDS, max_size=2).map(tuple),
    mounts=st.lists(st.builds(Mount, source=WORDS, target=WORDS), max_size=2).map(tuple),
    host_settings=st.dictionaries(WORDS, WORDS, max_size=2),
)
POLICIES = st.builds(
    Policy,
    networks=NETWORK_SETS,
    env_denied=PATTERNS.map(tuple),
    defaults=CEILINGS,
    ceilings=CEILINGS,
)
NARROWINGS = st.builds(
    PolicyNarrowing,
    networks=st.none() | NETWORK_SETS,
    env_denied=PATTERNS.map(tuple),
    ceilings=SOME_LIMITS,
)


@MANY
@given(JOBS, POLICIES, NARROWINGS)
def test_no_narrowing_permits_what_the_operator_forbids(
    job: Job, policy: Policy, narrowing: PolicyNarrowing
) -> None:
    def broken(by: Policy) -> set[tuple[str, str, str]]:
        return {(found.rule, found.field, found.value) for found in by.check(job)}

    assert broken(policy) <= broken(policy.narrowed(narrowing))


@MANY
@given(SOME_LIMITS, POLICIES, NARROWINGS)
def test_effective_limits_are_above_zero_and_under_every_ceiling(
    requested: Limits, policy: Policy, narrowing: PolicyNarrowing
) -> None:
    narrowed = policy.narrowed(narrowing)
    limits = narrowed.limits(requested)

    for name in LIMITS:
        assert 0 < getattr(limits, name) <= getattr(narrowed.ceilings, name)
        assert getattr(narrowed.ceilings, name) <= getattr(policy.ceilings, name)


@MANY
@given(JOBS, POLICIES)
def test_the_limits_of_a_job_that_breaks_no_rule_are_those_it_asked_for(
    job: Job, policy: Policy
) -> None:
    if any(found.rule == "limit_exceeds_tenant" for found in policy.check(job)):
        return

    limits = policy.limits(job.limits)

    for name in LIMITS:
        requested = getattr(job.limits, name)
        assert requested is None or requested == getattr(limits, name)


@MANY
@given(JOBS, POLICIES)
def test_any_job_that_decodes_can_be_checked_and_no_value_of_its_environment_is_told(
    job: Job, policy: Policy
) -> None:
    violations = policy.check(decode_job(encode_job(job)))

    assert "s3cret-value" not in str(violations)


@MANY
@given(JOBS)
def test_the_same_job_is_judged_the_same_before_and_after_the_wire(job: Job) -> None:
    assert Policy().check(job) == Policy().check(decode_job(encode_job(job)))
