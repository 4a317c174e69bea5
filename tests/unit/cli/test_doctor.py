"""``corral doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from click.testing import Result as Invoked
from support.commands import invoke_now

from corral_worker.cli import doctor as cli
from corral_worker.doctor.check import Check, in_thread
from corral_worker.doctor.finding import Finding, fail, ok, warn


def invoke(monkeypatch: pytest.MonkeyPatch, findings: Iterable[Finding], *args: str) -> Invoked:
    found = tuple(findings)
    check = Check(name="test", look=in_thread(lambda: found), within_s=30)
    monkeypatch.setattr(cli, "checks", lambda _: [check])
    return invoke_now("doctor", *args)


GOOD = ok("host.kernel", "Linux 6.1")
LACK = warn("host.clock", "nothing synchronises it", "Run chrony.")
BAD = fail("host.rights", "this is user 7, not root", "Run it as root.")


@pytest.mark.parametrize(
    ("findings", "arguments", "status"),
    [
        ([GOOD], [], 0),
        ([GOOD, LACK], [], 0),
        ([GOOD, LACK], ["--strict"], 1),
        ([GOOD], ["--strict"], 0),
        ([GOOD, LACK, BAD], [], 1),
        ([BAD], ["--json"], 1),
        ([LACK], ["--json", "--strict"], 1),
    ],
)
def test_the_exit_code_tells_whether_a_worker_may_start(
    monkeypatch: pytest.MonkeyPatch, findings: list[Finding], arguments: list[str], status: int
) -> None:
    assert invoke(monkeypatch, findings, *arguments).exit_code == status


def test_people_are_told_what_was_seen_and_then_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = invoke(monkeypatch, [GOOD, LACK]).output

    assert [line.split() for line in said.splitlines()] == [
        ["check", "seen"],
        ["host.kernel", "ok", "Linux", "6.1"],
        ["host.clock", "warn", "nothing", "synchronises", "it"],
        [],
        ["host.clock:", "Run", "chrony."],
        ["1", "ok,", "1", "warnings,", "0", "failures"],
    ]


def test_programs_are_told_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.loads(invoke(monkeypatch, [GOOD, BAD], "--json").output)

    assert said == {
        "passed": False,
        "findings": [
            {"name": "host.kernel", "status": "ok", "seen": "Linux 6.1", "remedy": ""},
            {
                "name": "host.rights",
                "status": "fail",
                "seen": "this is user 7, not root",
                "remedy": "Run it as root.",
            },
        ],
    }
