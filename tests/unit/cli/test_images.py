"""``corral images``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import invoke_now as invoke


@pytest.fixture
def image_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CORRAL_IMAGE_DIR", str(tmp_path / "images"))
    return tmp_path / "images"


def test_images_need_no_redis(image_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    monkeypatch.setenv("CORRAL_REDIS_URL_FILE", "/nowhere")
    invoked = invoke("images", "list", "--json")
    assert (invoked.exit_code, json.loads(invoked.stdout)) == (0, [])


def test_an_image_that_is_not_there_cannot_be_removed(image_dir: Path) -> None:
    invoked = invoke("images", "remove", "nope")
    assert invoked.exit_code == 1
    assert invoked.stderr.startswith("Error: this host has no image nope")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nope",), "name a source for 'nope'"),
        (("x", "--oci", "alpine", "--debian-packages", "git"), "name one source"),
        (("x", "--oci", "alpine", "--suite", "trixie"), "--suite goes with --debian-packages"),
        (("x", "--debian-packages", "--evil"), "is no name of a Debian package"),
        (("x", "--oci", "-evil"), "is no reference to an OCI image"),
    ],
)
def test_an_image_is_built_from_one_sound_source(
    image_dir: Path, args: tuple[str, ...], said: str
) -> None:
    invoked = invoke("images", "build", *args)
    assert (invoked.exit_code, invoked.stdout) == (2, "")
    assert said in invoked.stderr


def test_wrong_settings_are_named_to_images_too(
    image_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_SLOTS", "x")
    invoked = invoke("images", "list")
    assert (invoked.exit_code, "CORRAL_SLOTS" in invoked.stderr) == (2, True)
