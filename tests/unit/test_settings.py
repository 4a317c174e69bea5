"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from corral import Policy, PolicyNarrowing
from corral_worker import settings as settings_module
from corral_worker.marks import Marks
from corral_worker.secret import Secret
from corral_worker.settings import Settings, SettingsError, load
from corral_worker.settings_rules import DELEGATED

URL = "redis://worker:hunter2@10.0.0.1:6379/0"
ENVIRON = {"CORRAL_REDIS_URL": URL}

WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_file_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", tmp_path / "absent.toml")


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    def write(text: str) -> Path:
        path = tmp_path / "worker.toml"
        path.write_text(text)
        return path

    return write


def problems(config: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(config, environ)
    return [str(problem) for problem in caught.value.problems]


# Where a setting comes from


def test_a_redis_url_is_all_that_is_needed() -> None:
    assert load(None, ENVIRON) == Settings(redis_url=Secret(URL))


def test_the_file_counts_more_than_the_defaults_and_the_environment_more_than_the_file(
    toml: WriteToml,
) -> None:
    config = toml("slots = 2\nplatform = 'ptrace'")
    loaded = load(config, {**ENVIRON, "CORRAL_SLOTS": "3"})
    assert (loaded.slots, loaded.platform, loaded.log_level) == (3, "ptrace", "info")


def test_a_named_file_counts_more_than_the_one_the_environment_names(
    toml: WriteToml, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("slots = 9")
    environ = {**ENVIRON, "CORRAL_CONFIG": str(other)}
    assert load(None, environ).slots == 9
    assert load(toml("slots = 2"), environ).slots == 2


def test_the_default_file_is_read_if_it_exists(
    monkeypatch: pytest.MonkeyPatch, toml: WriteToml
) -> None:
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", toml("slots = 7"))
    assert load(None, ENVIRON).slots == 7


def test_a_default_file_that_cannot_be_read_is_refused_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", loop)
    (found,) = problems(None, ENVIRON)
    assert found.startswith(f"file {loop}: cannot be read: ")


def test_a_named_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    assert problems(path, ENVIRON) == [f"file {path}: cannot be read: No such file or directory"]


def test_text_in_the_environment_becomes_what_the_setting_is() -> None:
    loaded = load(
        None,
        {
            **ENVIRON,
            "CORRAL_SLOTS": "8",
            "CORRAL_STATE_DIR": "/srv/corral",
            "CORRAL_RUNSC_PATH": "/opt/runsc",
            "CORRAL_START_TIMEOUT_S": "2.5",
            "CORRAL_CGROUP_PARENT": "delegated",
            "CORRAL_LOG_FORMAT": "json",
        },
    )
    assert loaded == Settings(
        redis_url=Secret(URL),
        slots=8,
        state_dir=Path("/srv/corral"),
        runsc_path=Path("/opt/runsc"),
        start_timeout_s=2.5,
        cgroup_parent=DELEGATED,
        log_format="json",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    environ = {**ENVIRON, "CORRAL_SLOTS": "", "CORRAL_CONFIG": "", "CORRAL_REDIS_URL_FILE": ""}
    assert load(None, environ).slots == 4


def test_the_variables_of_corrals_other_parts_are_let_be() -> None:
    environ = {**ENVIRON, "CORRAL_LIVE": "0", "CORRAL_TEST_ANYTHING": "x", "PATH": "/bin"}
    assert load(None, environ) == Settings(redis_url=Secret(URL))


def test_images_lie_in_the_state_directory_unless_told_otherwise() -> None:
    assert load(None, ENVIRON).images == Path("/var/lib/corral/images")
    assert load(None, {**ENVIRON, "CORRAL_IMAGE_DIR": "/srv/i"}).images == Path("/srv/i")


# Policies


def test_a_policy_keeps_the_defaults_of_what_the_file_leaves_out(toml: WriteToml) -> None:
    ceilings = load(toml("[policy.ceilings]\nwall_s = 60"), ENVIRON).policy.ceilings
    assert ceilings == msgspec.structs.replace(Policy().ceilings, wall_s=60)


def test_a_tenant_has_the_policy_of_all_less_what_is_taken_away(toml: WriteToml) -> None:
    loaded = load(toml("[tenants.acme.policy.ceilings]\nmemory_bytes = 33554432"), ENVIRON)
    assert loaded.policy_of("acme").ceilings.memory_bytes == 33554432
    assert loaded.policy_of("other") == Policy()
    assert loaded.tenants["acme"].policy == msgspec.convert(
        {"ceilings": {"memory_bytes": 33554432}}, PolicyNarrowing
    )


@pytest.mark.parametrize("value", ["-1", "0", "inf", "nan"])
@pytest.mark.parametrize("table", ["defaults", "ceilings"])
def test_a_limit_that_limits_nothing_is_refused(toml: WriteToml, table: str, value: str) -> None:
    found = problems(toml(f"[policy.{table}]\nwall_s = {value}"), ENVIRON)
    assert len(found) == 1
    assert f"policy.{table}.wall_s: " in found[0]


TOO_LITTLE = ["cpus = 0.04", "memory_bytes = 16777215", "open_files = 15"]


@pytest.mark.parametrize("limit", TOO_LITTLE)
@pytest.mark.parametrize("table", ["defaults", "ceilings"])
def test_a_limit_with_which_no_job_could_start_is_refused(
    toml: WriteToml, table: str, limit: str
) -> None:
    found = problems(toml(f"[policy.{table}]\n{limit}"), ENVIRON)
    assert len(found) == 1
    assert f"policy.{table}.{limit.partition(' ')[0]}: " in found[0]
    assert "is too little for a sandbox to start, so that no job could run; at least" in found[0]


@pytest.mark.parametrize("limit", ["cpus = 0.05", "memory_bytes = 16777216", "open_files = 16"])
@pytest.mark.parametrize("table", ["defaults", "ceilings"])
def test_the_least_with_which_a_sandbox_starts_is_a_limit(
    toml: WriteToml, table: str, limit: str
) -> None:
    load(toml(f"[policy.{table}]\n{limit}"), ENVIRON)


@pytest.mark.parametrize("limit", TOO_LITTLE)
def test_a_tenants_limit_with_which_no_sandbox_starts_is_refused(
    toml: WriteToml, limit: str
) -> None:
    found = problems(toml(f"[tenants.acme.policy.ceilings]\n{limit}"), ENVIRON)
    assert len(found) == 1
    assert "is too little for a sandbox to start: at least" in found[0]


@pytest.mark.parametrize("value", ["-1", "0", "inf", "nan"])
def test_a_tenants_limit_that_limits_nothing_is_refused(toml: WriteToml, value: str) -> None:
    found = problems(toml(f"[tenants.acme.policy.ceilings]\nwall_s = {value}"), ENVIRON)
    assert len(found) == 1
    assert "tenants.acme" in found[0]


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ("['none', 'sandbox']", "networking is not available yet"),
        ("['none', 'host']", "'host' cannot be granted"),
        ("[]", "lacks 'none'"),
    ],
)
def test_only_no_network_can_be_granted(toml: WriteToml, networks: str, said: str) -> None:
    (found,) = problems(toml(f"[policy]\nnetworks = {networks}"), ENVIRON)
    assert "policy.networks: " in found
    assert said in found


def test_a_tenants_name_is_checked(toml: WriteToml) -> None:
    (found,) = problems(toml("[tenants.'Acme Inc']"), ENVIRON)
    assert "tenants.Acme Inc: 'Acme Inc' is no tenant name" in found


# What is refused


def test_unknown_keys_are_refused_with_their_path_and_what_was_meant(toml: WriteToml) -> None:
    config = toml("slotz = 1\n[policy.ceilings]\nwal_s = 1\n[tenants.a.policy.ceilings]\npid = 1")
    assert problems(config, ENVIRON) == [
        f"file {config}: slotz: unknown key; did you mean slots?",
        f"file {config}: policy.ceilings.wal_s: unknown key; did you mean wall_s?",
        f"file {config}: tenants.a.policy.ceilings.pid: unknown key; did you mean pids?",
    ]


def test_an_unknown_variable_is_refused_with_what_was_meant() -> None:
    assert problems(None, {**ENVIRON, "CORRAL_SLOT": "1"}) == [
        "environment CORRAL_SLOT: unknown variable; did you mean CORRAL_SLOTS?"
    ]


@pytest.mark.parametrize("key", ["CORRAL_LIV", "CORRAL_POLIC", "CORRAL_TENANT", "CORRAL_XYZ"])
def test_only_variables_that_can_be_set_are_offered_for_an_unknown_one(key: str) -> None:
    (found,) = problems(None, {**ENVIRON, key: "1"})

    offered = {word.strip("?,") for word in found.partition("unknown variable; ")[2].split()}
    assert "CORRAL_SLOTS" in offered
    assert not offered & {"CORRAL_LIVE", "CORRAL_POLICY", "CORRAL_TENANTS", "CORRAL_ADMISSION"}


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "REDIS_SERVICE_HOST",
        "REDIS_SERVICE_PORT",
        "REDIS_SERVICE_PORT_REDIS",
        "REDIS_PORT",
        "REDIS_PORT_6379_TCP",
        "REDIS_PORT_6379_TCP_PROTO",
        "REDIS_PORT_6379_TCP_PORT",
        "REDIS_PORT_6379_TCP_ADDR",
    ],
)
def test_what_kubernetes_sets_for_a_service_is_refused_with_the_remedy(name: str) -> None:
    (found,) = problems(None, {**ENVIRON, f"CORRAL_{name}": "10.0.0.1"})

    assert found.startswith(f"environment CORRAL_{name}: unknown variable; ")
    assert "set enableServiceLinks: false in the pod's spec" in found


def test_a_variable_in_small_letters_is_no_setting() -> None:
    (found,) = problems(None, {**ENVIRON, "CORRAL_slots": "1"})
    assert "CORRAL_slots: unknown variable" in found


@pytest.mark.parametrize("name", ["POLICY", "TENANTS"])
def test_tables_can_only_be_set_in_the_file(name: str) -> None:
    assert problems(None, {**ENVIRON, f"CORRAL_{name}": "{}"}) == [
        f"environment CORRAL_{name}: {name.lower()}: is a table: set it in the TOML file"
    ]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SLOTS", "0", "slots: Expected int >= 1"),
        ("SLOTS", "many", "slots: Expected int (How many jobs run at one time.)"),
        ("PLATFORM", "qemu", "use one of systrap, ptrace, kvm"),
        ("START_TIMEOUT_S", "nan", "start_timeout_s: Expected float > 0.0"),
        ("DRAIN_GRACE_S", "inf", "drain_grace_s: Expected float <= 86400.0"),
        ("STATE_DIR", "here", "'here' is not an absolute path"),
        ("STATE_DIR", "/a/../b", "without '..'"),
        ("STATE_DIR", "/" + "a" * 60, "61 bytes long, at most 60 are accepted"),
        ("IMAGE_DIR", "here", "image_dir: 'here' is not an absolute path"),
        ("RUNSC_PATH", "runsc", "runsc_path: 'runsc' is not an absolute path"),
        ("CGROUP_PARENT", "corral", "'corral' is no cgroup path"),
        ("CGROUP_PARENT", "/", "'/' is no cgroup path"),
        ("CGROUP_PARENT", "/a/../b", "'/a/../b' is no cgroup path"),
        ("LOG_LEVEL", "loud", "use one of debug, info, warning, error"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(variable: str, value: str, said: str) -> None:
    (found,) = problems(None, {**ENVIRON, f"CORRAL_{variable}": value})
    assert found.startswith(f"environment CORRAL_{variable}: {variable.lower()}: ")
    assert said in found


def test_in_the_file_text_does_not_stand_for_a_number(toml: WriteToml) -> None:
    (found,) = problems(toml("slots = '4'"), ENVIRON)
    assert "slots: Expected int, got str" in found


def test_a_longest_state_directory_is_accepted() -> None:
    longest = "/" + "a" * 59
    assert load(None, {**ENVIRON, "CORRAL_STATE_DIR": longest}).state_dir == Path(longest)


def test_everything_wrong_is_named_at_once(toml: WriteToml) -> None:
    found = problems(toml("slots = 0\ncgroup_parent = 'x'"), {"CORRAL_PLATFORM": "qemu"})
    assert [line.split(": ")[1] for line in found] == [
        "cgroup_parent",
        "slots",
        "platform",
        "redis_url",
    ]


def test_broken_toml_is_refused_with_its_place_only(toml: WriteToml) -> None:
    config = toml("slots = 1\nredis_url = redis://hunter2")
    assert problems(config, ENVIRON) == [f"file {config}: is not valid TOML (at line 2, column 13)"]


# The secret


def test_a_file_of_its_own_can_hold_the_redis_url(tmp_path: Path) -> None:
    path = tmp_path / "redis-url"
    path.write_text(f"{URL}\n")
    loaded = load(None, {"CORRAL_REDIS_URL_FILE": str(path)})
    assert loaded.redis_url.reveal() == URL


def test_the_redis_url_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    (found,) = problems(None, {**ENVIRON, "CORRAL_REDIS_URL_FILE": str(tmp_path / "x")})
    assert "redis_url: is set beside CORRAL_REDIS_URL: set one of them" in found


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"hunter2"])
def test_a_secret_file_without_a_url_is_refused_unquoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "redis-url"
    path.write_bytes(content)
    (found,) = problems(None, {"CORRAL_REDIS_URL_FILE": str(path)})
    assert str(path) in found
    assert "hunter2" not in found


def test_a_secret_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    (found,) = problems(None, {"CORRAL_REDIS_URL_FILE": str(path)})
    assert f"file {path}: redis_url: cannot be read: No such file or directory" in found


def test_without_a_redis_url_it_says_how_to_give_one() -> None:
    (found,) = problems(None, {})
    assert found.startswith("settings: redis_url: not set: give it as CORRAL_REDIS_URL")


@pytest.mark.parametrize(
    "url", ["http://:hunter2@x", "hunter2", "redis://:hunter2@x:notaport/0", "redis://[hunter2"]
)
def test_a_wrong_redis_url_is_refused_unquoted(url: str, toml: WriteToml) -> None:
    for found in (
        problems(None, {"CORRAL_REDIS_URL": url}),
        problems(toml(f"redis_url = '{url}'"), {}),
    ):
        assert len(found) == 1
        assert "not a Redis URL" in found[0]
        assert "hunter2" not in found[0]


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2?ssl_cert_reqs=none", "unix:///s"])
def test_all_kinds_of_redis_urls_are_accepted(url: str) -> None:
    assert load(None, {"CORRAL_REDIS_URL": url}).redis_url.reveal() == url


def test_a_secret_never_shows_itself() -> None:
    secret = Secret("hunter2")
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>20}",
        "%s" % secret,  # noqa: UP031
        repr([secret]),
        repr(load(None, ENVIRON)),
        str(msgspec.to_builtins(load(None, ENVIRON), enc_hook=str)),
    ]
    assert [text for text in shown if "hunter2" in text] == []
    with pytest.raises(TypeError):
        msgspec.json.encode(secret)


def test_secrets_are_equal_if_what_they_hide_is() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


# Settings as documentation


def test_every_setting_is_described() -> None:
    described = [
        field.name
        for field in msgspec.structs.fields(Settings)
        if any(isinstance(note, msgspec.Meta) and note.description for note in get_args(field.type))
    ]
    assert described == list(Settings.__struct_fields__)


# What the host must have left


def test_a_mark_that_is_set_leaves_the_others_as_they_are(toml: WriteToml) -> None:
    loaded = load(toml("[admission]\nmemory_bytes = 0\ncpu_pressure = 90.5"), ENVIRON)

    assert loaded.admission == Marks(memory_bytes=0, cpu_pressure=90.5)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("memory_pressure = 101", "admission.memory_pressure: Expected `float` <= 100.0"),
        ("disk_bytes = -1", "admission.disk_bytes: Expected `int` >= 0"),
        ("disk_byte = 1", "admission.disk_byte: unknown key; did you mean disk_bytes?"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(toml: WriteToml, line: str, complaint: str) -> None:
    (found,) = problems(toml(f"[admission]\n{line}"), ENVIRON)

    assert complaint.replace("`", "") in found


def test_the_marks_are_no_variable_of_the_environment() -> None:
    (found,) = problems(None, {**ENVIRON, "CORRAL_ADMISSION": "0"})

    assert "is a table: set it in the TOML file" in found
