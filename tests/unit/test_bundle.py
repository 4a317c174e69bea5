from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import jsonschema  # type: ignore[import-untyped]  # it has no types of its own
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from referencing import Registry
from referencing.jsonschema import DRAFT4

from corral import EffectiveLimits, Job
from corral_worker.sandbox.bundle import (
    ROOT_DIRECTORY,
    WRITABLE,
    SandboxSpec,
    host_tasks,
    oci_config,
)

SCHEMAS = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema")
ROOTFS = PurePosixPath("/var/lib/corral/images/sha256/abc/rootfs.erofs")

NAMES = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)
# Any character but NUL, which no program can receive, and halves of characters.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
IDS = st.integers(0, 2**31 - 1)
JOBS = st.builds(
    Job,
    argv=st.tuples(TEXTS.filter(bool)) | st.lists(TEXTS.filter(bool), min_size=1).map(tuple),
    env=st.dictionaries(NAMES, TEXTS, max_size=5),
    cwd=st.lists(NAMES).map(lambda parts: "/" + "/".join(parts)),
    user=st.just("nobody") | IDS.map(str) | st.tuples(IDS, IDS).map("{0[0]}:{0[1]}".format),
    stdin=st.binary(max_size=10),
)
LIMITS = st.builds(
    EffectiveLimits,
    wall_s=st.floats(0.001, 604_800),
    cpu_time_s=st.floats(0.001, 604_800),
    cpus=st.floats(0.05, 1024),
    memory_bytes=st.integers(2**24, 2**40),
    pids=st.integers(1, 100_000),
    disk_bytes=st.integers(1, 2**40),
    file_bytes=st.integers(1, 2**40),
    output_bytes=st.integers(1, 2**26),
    open_files=st.integers(16, 65_535),
)


def config_of(job: Job, limits: EffectiveLimits | None = None) -> dict[str, object]:
    spec = SandboxSpec(
        job=job,
        limits=limits or EffectiveLimits(),
        rootfs=ROOTFS,
        cgroups_path="/corral/corral-0123",
    )
    # By way of the bytes that runsc will read.
    decoded: dict[str, object] = msgspec.json.decode(msgspec.json.encode(oci_config(spec)))
    return decoded


def at(config: object, *path: str) -> object:
    for step in path:
        assert isinstance(config, dict)
        config = config[step]
    return config


def mounts_of(config: object) -> dict[str, Mapping[str, object]]:
    mounts = at(config, "mounts")
    assert isinstance(mounts, list)
    return {mount["destination"]: mount for mount in mounts}


@pytest.fixture(scope="session")
def runtime_spec() -> jsonschema.Draft4Validator:
    """The JSON schema of the OCI runtime specification."""
    files = list(SCHEMAS.glob("*.json"))
    assert files, (
        "the JSON schema of the OCI runtime specification is not on this machine: run"
        " 'tools/setup --test', or install golang-github-opencontainers-specs-dev"
    )
    registry = Registry().with_resources(
        (file.name, DRAFT4.create_resource(json.loads(file.read_text()))) for file in files
    )
    schema = json.loads((SCHEMAS / "config-schema.json").read_text())
    return jsonschema.Draft4Validator(schema, registry=registry)


@given(job=JOBS, limits=LIMITS)
def test_every_valid_job_gives_a_valid_configuration(
    runtime_spec: jsonschema.Draft4Validator, job: Job, limits: EffectiveLimits
) -> None:
    runtime_spec.validate(config_of(job, limits))


def test_the_schema_would_notice(runtime_spec: jsonschema.Draft4Validator) -> None:
    config = config_of(Job(argv=("true",)))
    config["linux"] = {"namespaces": [{"type": "no such"}]}

    with pytest.raises(jsonschema.ValidationError):
        runtime_spec.validate(config)


@given(job=JOBS, limits=LIMITS)
def test_the_program_gets_what_the_job_says(job: Job, limits: EffectiveLimits) -> None:
    process = at(config_of(job, limits), "process")
    uid, gid = job.ids()
    environment = at(process, "env")
    assert isinstance(environment, list)

    assert at(process, "args") == list(job.argv)
    assert at(process, "cwd") == job.cwd
    assert at(process, "user") == {"uid": uid, "gid": gid}
    assert {f"{name}={value}" for name, value in job.env.items()} <= set(environment)
    names = [entry.partition("=")[0] for entry in environment]
    assert sorted(names) == sorted({"PATH", "HOME", "LANG"} | job.env.keys())


@given(job=JOBS, limits=LIMITS)
def test_no_job_gets_a_right(job: Job, limits: EffectiveLimits) -> None:
    config = config_of(job, limits)
    capabilities = at(config, "process", "capabilities")
    assert isinstance(capabilities, dict)

    assert capabilities.keys() == {
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    }
    assert set(map(tuple, capabilities.values())) == {()}
    assert at(config, "process", "noNewPrivileges") is True
    assert at(config, "process", "terminal") is False
    assert at(config, "root") == {"path": ROOT_DIRECTORY, "readonly": True}
    namespaces = at(config, "linux", "namespaces")
    assert isinstance(namespaces, list)
    # None has a path: that would be the namespace of somebody else.
    assert [set(namespace) for namespace in namespaces] == [{"type"}] * 5
    assert {namespace["type"] for namespace in namespaces} == {
        "pid",
        "network",
        "ipc",
        "uts",
        "mount",
    }
    assert "hooks" not in config
    for place in (config, at(config, "linux"), at(config, "linux", "resources")):
        assert isinstance(place, dict)
        assert "devices" not in place


@given(job=JOBS, limits=LIMITS)
def test_no_directory_of_the_host_is_within_reach(job: Job, limits: EffectiveLimits) -> None:
    config = config_of(job, limits)
    mounts = mounts_of(config)

    assert {mount["type"] for mount in mounts.values()} == {"proc", "tmpfs", "sysfs"}
    assert {mount["source"] for mount in mounts.values()} == {"proc", "tmpfs", "sysfs"}
    assert not any("bind" in str(mount.get("options")) for mount in mounts.values())
    assert config["annotations"] == {
        "dev.gvisor.spec.rootfs.source": str(ROOTFS),
        "dev.gvisor.spec.rootfs.type": "erofs",
    }


@given(limits=LIMITS)
def test_every_writable_directory_has_a_size(limits: EffectiveLimits) -> None:
    mounts = mounts_of(config_of(Job(argv=("true",)), limits))

    assert set(WRITABLE) == {"/workspace", "/tmp", "/var/tmp", "/home"}
    for place in WRITABLE:
        options = mounts[place]["options"]
        assert isinstance(options, list)
        assert f"size={limits.disk_bytes}" in options
        assert {"nosuid", "nodev"} <= set(options)
    for place, mount in mounts.items():
        if mount["type"] == "tmpfs":
            assert "size=" in str(mount["options"]), place


@given(limits=LIMITS)
def test_shared_memory_is_there_as_posix_wants_it_and_nothing_can_be_executed_from_it(
    limits: EffectiveLimits,
) -> None:
    mounts = mounts_of(config_of(Job(argv=("true",)), limits))

    assert list(mounts).index("/dev/shm") > list(mounts).index("/dev")
    options = mounts["/dev/shm"]["options"]
    assert isinstance(options, list)
    assert {"nosuid", "nodev", "noexec", "mode=1777", f"size={limits.disk_bytes}"} == set(options)


@pytest.mark.parametrize(("pids", "tasks"), [(1, 34), (8, 48), (20, 72), (1024, 2080)])
def test_a_process_may_take_two_host_threads_and_gvisor_some_of_its_own(
    pids: int, tasks: int
) -> None:
    assert host_tasks(EffectiveLimits(pids=pids)) == tasks


@given(limits=LIMITS)
def test_the_guest_is_told_the_limits_that_the_host_enforces(limits: EffectiveLimits) -> None:
    config = config_of(Job(argv=("true",)), limits)

    resources = at(config, "linux", "resources")
    assert at(resources, "memory") == {"limit": limits.memory_bytes}
    assert at(resources, "pids") == {"limit": host_tasks(limits)}
    assert at(resources, "cpu") == {"quota": int(limits.cpus * 100_000), "period": 100_000}
    assert at(config, "process", "rlimits") == [
        {"type": "RLIMIT_NOFILE", "soft": limits.open_files, "hard": limits.open_files},
        {"type": "RLIMIT_FSIZE", "soft": limits.file_bytes, "hard": limits.file_bytes},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    assert host_tasks(limits) > limits.pids


def test_a_jobs_own_environment_counts_before_the_defaults() -> None:
    job = Job(argv=("true",), env={"PATH": "/mine", "LANG": ""})

    environment = at(config_of(job), "process", "env")

    assert environment == ["PATH=/mine", "HOME=/home", "LANG="]


def test_nothing_of_the_hosts_environment_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_of(Job(argv=("true",)))
    for name in ("PATH", "HOME", "LANG", "NOTIFY_SOCKET", "CORRAL_REDIS_URL"):
        monkeypatch.setenv(name, "of-the-host")

    assert config_of(Job(argv=("true",))) == before
    assert "of-the-host" not in json.dumps(before)


def test_the_configuration_is_a_function_of_its_arguments_alone() -> None:
    job = Job(argv=("python3", "-c", "print(1)"), env={"A": "b"})

    assert config_of(job) == config_of(job)


def test_a_container_in_a_sandbox_that_runs_differs_in_where_it_is_and_in_nothing_else() -> None:
    spec = SandboxSpec(
        job=Job(argv=("true",)),
        limits=EffectiveLimits(),
        rootfs=ROOTFS,
        cgroups_path="/corral/corral-0123",
    )
    alone = oci_config(spec)
    within = oci_config(msgspec.structs.replace(spec, sandbox="corral-0123"))

    differ = {key for key in alone if alone[key] != within[key]}
    assert differ == {"annotations", "linux"}
    assert isinstance(alone["annotations"], dict)
    assert isinstance(alone["linux"], dict)
    assert within["annotations"] == {
        **alone["annotations"],
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "corral-0123",
    }
    assert within["linux"] == {
        key: value for key, value in alone["linux"].items() if key != "cgroupsPath"
    }
