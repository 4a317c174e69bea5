"""``corral run``: what it asks for."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from support.commands import invoke_now as invoke
from support.fake_client import ends_with

from corral import Job, Limits, Outcome, Result
from corral_worker.cli import units

DONE = Result(outcome=Outcome.EXITED, exit_code=0)


def test_options_become_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ends_with(monkeypatch, DONE)
    invoke(
        *("run", "--image", "base", "--tenant", "acme", "--timeout", "2", "--memory", "64M"),
        *("--cpus", "0.5", "--env", "A=b=c", "--env", "D=", "--user", "1000:1000"),
        *("--cwd", "/tmp", "--stdin", "-", "--", "sh", "-c", "--json"),
        stdin=b"\x00in",
    )
    job = Job(
        argv=("sh", "-c", "--json"),
        image="base",
        env={"A": "b=c", "D": ""},
        user="1000:1000",
        cwd="/tmp",
        stdin=b"\x00in",
        limits=Limits(wall_s=2, memory_bytes=64 * 2**20, cpus=0.5),
    )
    assert client.submitted == [(job, "acme")]


def test_without_options_the_job_has_the_contracts_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = ends_with(monkeypatch, DONE)
    invoke("run", "true", "--json", stdin=b"not asked for")
    assert client.submitted == [(Job(argv=("true", "--json")), "default")]


def test_standard_input_can_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = ends_with(monkeypatch, DONE)
    path = tmp_path / "in"
    path.write_bytes(b"\xff")
    invoke("run", "--stdin", str(path), "true")
    assert client.submitted[0][0].stdin == b"\xff"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("64M", 2**26),
        ("64m", 2**26),
        ("1.5GiB", 3 * 2**29),
        ("2kb", 2048),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert units.byte_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e9", "0x10", "1 2", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        units.byte_size(text)


@pytest.mark.parametrize(
    "args",
    [
        ("--bogus", "true"),
        (),
        ("--memory", "lots", "true"),
        ("--env", "hunter2", "true"),
        ("--stdin", "/nowhere", "true"),
        ("--wait-timeout", "0", "true"),
    ],
)
def test_wrong_options_exit_with_125_for_2_may_be_the_programs_own(args: tuple[str, ...]) -> None:
    invoked = invoke("run", *args)
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert "Error: " in invoked.stderr
    assert "hunter2" not in invoked.stderr


def test_a_job_that_cannot_be_made_is_refused_before_it_is_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = ends_with(monkeypatch, DONE)
    invoked = invoke("run", "--timeout", "nan", "true")
    assert (invoked.exit_code, client.submitted) == (125, [])
    assert invoked.stderr.startswith("corral: invalid_job: ")


def test_without_a_redis_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert "export CORRAL_REDIS_URL=redis://127.0.0.1:6379/0" in invoked.stderr
    assert "corral worker --embedded" in invoked.stderr


def test_a_redis_that_does_not_answer_is_a_typed_error_without_the_password() -> None:
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert invoked.stderr.startswith("corral: daemon_unavailable: Redis at 127.0.0.1:1 ")
    assert "hunter2" not in invoked.stderr
