"""The settings that a host is looked at with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral_worker.doctor.configuration import protection, read_configuration
from corral_worker.doctor.finding import Status


def test_a_host_without_settings_is_looked_at_with_the_defaults_and_this_is_said(
    tmp_path: Path,
) -> None:
    found = read_configuration(tmp_path / "worker.toml", {"CORRAL_SLOTS": "none"})

    assert found.settings.slots == 4
    assert not found.has_redis
    assert {finding.name for finding in found.findings} == {"settings"}
    assert any("cannot be read" in finding.seen for finding in found.findings)


def test_settings_that_only_lack_redis_are_used(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("slots = 3\n")
    file.chmod(0o644)

    found = read_configuration(None, {"CORRAL_CONFIG": str(file)})

    assert found.settings.slots == 3
    assert not found.has_redis
    assert [(each.name, each.status) for each in found.findings] == [
        ("settings", "ok"),
        ("settings.file", "ok"),
    ]


def test_usable_settings_are_used_with_their_redis() -> None:
    found = read_configuration(None, {"CORRAL_REDIS_URL": "redis://:secret@127.0.0.1:6379/0"})

    assert found.has_redis
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("mode", "secret", "status"),
    [
        (0o600, True, "ok"),
        (0o644, False, "ok"),
        (0o640, True, "warn"),
        (0o644, True, "warn"),
        (0o664, False, "fail"),
        (0o602, True, "fail"),
    ],
)
def test_a_settings_file_that_others_can_use_is_found(
    tmp_path: Path, mode: int, *, secret: bool, status: Status
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('redis_url = "redis://:secret@127.0.0.1:6379/0"\n' if secret else "slots = 3\n")
    file.chmod(mode)

    found = read_configuration(file, {"CORRAL_REDIS_URL": "redis://127.0.0.1:6379/0"})

    assert [each.status for each in found.findings if each.name == "settings.file"] == [status]


def test_a_file_of_another_user_can_be_changed_by_that_user(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("")
    os.chown(file, 1234, -1)

    assert protection("settings.file", file, file.stat(), secret=False).status == "fail"


def test_the_file_with_the_redis_url_is_looked_at_too(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:secret@127.0.0.1:6379/0")
    file.chmod(0o644)

    found = read_configuration(None, {"CORRAL_REDIS_URL_FILE": str(file)})

    assert ("settings.secret", "warn") in [(each.name, each.status) for each in found.findings]
