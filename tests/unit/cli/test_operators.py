"""What operators' commands say: of jobs, dead letters and tenants."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from msgspec import structs
from support.commands import invoke_now as invoke

from corral import ErrInvalidJob, Explanation, JobStatus, Limits, Outcome, PolicyNarrowing, WaitsFor
from corral.status import explained
from corral_worker.cli import dead, jobs, tenants_text
from corral_worker.cli.text import printable
from corral_worker.queue.dead import DeadJob, DeadLetter, DeadLetters
from corral_worker.queue.tenant_config import TenantConfig
from corral_worker.queue.tenants import Defaults, Holding, TenantState

WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
QUEUED = Explanation(
    job_id="acme:1",
    tenant="acme",
    status=JobStatus.QUEUED,
    waits_for=tuple(WaitsFor),
    jobs_ahead=4,
    tenant_running=2,
    tenant_concurrency=2,
    starts_at=WHEN,
)
RUNNING = Explanation(
    job_id="acme:1",
    tenant="acme",
    status=JobStatus.RUNNING,
    worker="host-1",
    claimed_at=WHEN,
    attempt=2,
    begun=True,
    lease_ends_in_s=7.25,
)
LETTER = DeadLetter(
    job_id="acme:1",
    tenant="acme",
    why="lost_leases",
    given_up_at=WHEN,
    lost_leases=3,
    starts=1,
    payload_bytes=2048,
)
ASKED_FOR = DeadJob(
    program="python3",
    arguments=2,
    image="python",
    env_variables=1,
    stdin_bytes=100,
    attempts=1,
)
STATE = TenantState(
    tenant="acme",
    known=True,
    may_submit=True,
    own=TenantConfig(weight=2, concurrency=3),
    holds=Holding(weight=2, concurrency=3, depth=0, payload_bytes=65536, suspended=False),
    waiting=5,
    running=1,
)


# Jobs.


def test_each_reason_for_waiting_is_told() -> None:
    assert list(jobs.describe(QUEUED)) == [
        "no worker is alive",
        "its tenant is suspended",
        "its tenant is not known, and only known ones are served",
        "delayed until 2026-01-02 03:04:05 UTC",
        "its tenant is at its concurrency cap (2 running)",
        "behind 4 job(s) of its tenant",
        "its tenant's next: it waits for a free slot of a worker",
    ]


def test_a_running_job_is_told_with_its_worker_attempt_and_lease() -> None:
    assert list(jobs.describe(structs.replace(RUNNING, cancel_requested=True, lost_leases=1))) == [
        (
            "running on worker host-1 since 2026-01-02 03:04:05 UTC, attempt 2, lease ends in 7.2 s"
            " unless renewed"
        ),
        "it was asked to end",
        "1 worker(s) went away while they held it",
    ]


def test_a_job_of_a_stock_worker_is_told_as_such() -> None:
    stock = Explanation(
        job_id="acme:1", tenant="acme", status=JobStatus.RUNNING, lease_ends_in_s=300.0
    )
    assert list(jobs.describe(stock)) == [
        "held by a worker of stock arq, lease ends in 300.0 s unless renewed"
    ]


def test_a_finished_job_is_told_with_its_outcome_or_error() -> None:
    done = Explanation(job_id="acme:1", tenant="acme", status=JobStatus.FINISHED)

    assert list(jobs.describe(structs.replace(done, outcome=Outcome.OUT_OF_MEMORY))) == [
        "outcome: out_of_memory"
    ]
    assert list(jobs.describe(structs.replace(done, error="worker_lost", dead_letter=True))) == [
        "error: worker_lost",
        "it was given up and kept: corral dead show acme:1",
    ]
    assert list(jobs.describe(done)) == ["its result has expired"]


def test_an_unknown_reply_is_no_explanation() -> None:
    assert explained("acme:1", "acme", [b"unknown"]) is None
    with pytest.raises(ValueError, match="else"):
        explained("acme:1", "acme", [b"else"])


def test_a_job_that_nothing_holds_up_waits_for_a_slot() -> None:
    found = explained("acme:1", "acme", [b"queued", b"1000", 0, 0, 0, 0, b"2", 1, 1, 0, b""])

    assert found is not None
    assert (found.status, found.waits_for) == (JobStatus.QUEUED, (WaitsFor.SLOT,))
    assert (found.tenant_running, found.tenant_concurrency) == (1, 2)
    assert found.starts_at is None


def test_a_job_that_no_host_has_room_for_says_what_they_are_short_of() -> None:
    reply: list[bytes | int] = [b"queued", b"1000", 0, 0, 0, 0, b"2", 1, 0, 0, b"disk,memory,disk"]
    found = explained("acme:1", "acme", reply)

    assert found is not None
    assert (found.waits_for, found.hosts_short_of) == ((WaitsFor.WORKER,), ("disk", "memory"))
    assert list(jobs.describe(found)) == ["no worker takes jobs: short of disk, memory"]


# Dead letters.


def test_a_dead_letter_is_told_without_its_data() -> None:
    assert dead.describe(LETTER, ASKED_FOR) == [
        ("job", "acme:1"),
        ("tenant", "acme"),
        ("given up", "2026-01-02 03:04:05 UTC"),
        ("why", "lost_leases"),
        ("lost leases", "3"),
        ("starts", "1"),
        ("size", "2 KiB"),
        ("program", "python3 (2 arguments)"),
        ("image", "python"),
        ("env", "1 variables"),
        ("stdin", "100 B"),
        ("attempts", "1"),
    ]


def test_a_dead_letter_that_is_no_job_is_told_with_the_error() -> None:
    error = ErrInvalidJob("malformed: no", path="$.argv")

    assert dead.describe(LETTER, error)[-1] == ("job data", "invalid_job: malformed: no")
    shown = json.loads(dead.as_json(LETTER, error))
    assert (shown["why"], shown["job_error"]["context"]) == ("lost_leases", {"path": "$.argv"})


def test_json_of_a_dead_letter_has_the_job() -> None:
    shown = json.loads(dead.as_json(LETTER, ASKED_FOR))

    assert shown["given_up_at"] == "2026-01-02T03:04:05Z"
    assert shown["job"]["program"] == "python3"


def test_strangers_text_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\n\udc80é") == "a\\x1b[2Jb\\n\\udc80é"
    assert len(printable("x" * 5000)) == 1001


# Tenants.


def test_a_tenant_is_told_with_the_origin_of_each_setting() -> None:
    assert list(tenants_text.state_rows(STATE)) == [
        ("tenant", "acme", ""),
        ("state", "active", "default"),
        ("weight", "2", "own"),
        ("concurrency", "3", "own"),
        ("depth", "no cap", "default"),
        ("payload", "64 KiB", "default"),
        ("jobs waiting", "5", ""),
        ("jobs running", "1", ""),
    ]


def test_a_tenants_policy_is_told_item_by_item() -> None:
    policy = PolicyNarrowing(
        networks=frozenset(), env_denied=("AWS_*", "GCP_*"), ceilings=Limits(wall_s=5)
    )
    own = structs.replace(STATE.own, policy=policy)
    lines = list(tenants_text.state_rows(structs.replace(STATE, own=own)))

    assert [line for line in lines if line[0].startswith("policy")] == [
        ("policy.networks", "none at all", "own"),
        ("policy.env_denied", "AWS_*, GCP_*", "own"),
        ("policy.ceilings.wall_s", "5", "own"),
    ]
    assert tenants_text.row(structs.replace(STATE, own=own))[7] == "narrowed"


def test_a_policy_that_cannot_be_read_is_told_with_what_follows_from_it() -> None:
    broken = structs.replace(STATE, policy_error="no\x1b")

    assert (
        "policy",
        "cannot be read, so all its jobs are refused: no\\x1b",
        "own",
    ) in list(tenants_text.state_rows(broken))
    assert tenants_text.row(broken)[7] == "unreadable"


def test_a_suspended_tenant_that_is_closed_out_is_told_as_both() -> None:
    holds = structs.replace(STATE.holds, suspended=True)
    state = structs.replace(STATE, holds=holds, may_submit=False)

    assert tenants_text.row(state)[-1] == "suspended, closed out, as it has no settings"


def test_the_defaults_are_told() -> None:
    closed = Defaults(unknown="closed", config=TenantConfig(depth=7, suspended=True))

    assert list(tenants_text.default_rows(closed)) == [
        ("unknown tenants", "closed: they may not submit"),
        ("state", "suspended"),
        ("weight", "1"),
        ("concurrency", "no cap"),
        ("depth", "7"),
        ("payload", "no cap"),
    ]


# Failing.


@pytest.mark.parametrize(
    "args",
    [
        ("tenants", "list"),
        ("tenants", "show", "acme"),
        ("tenants", "set", "acme", "--weight", "2"),
        ("tenants", "default"),
        ("dead", "list"),
        ("dead", "retry", "acme:1"),
        ("jobs", "show", "acme:1"),
        ("jobs", "cancel", "acme:1"),
    ],
)
def test_without_redis_a_command_fails_and_names_it_without_its_password(
    args: tuple[str, ...],
) -> None:
    invoked = invoke(*args)

    assert (invoked.exit_code, invoked.stdout) == (1, "")
    assert invoked.stderr.startswith("corral: daemon_unavailable: Redis at 127.0.0.1:1 ")
    assert "hunter2" not in invoked.stderr


@pytest.mark.parametrize("args", [("tenants", "list"), ("dead", "list"), ("jobs", "show", "a:1")])
def test_without_a_url_a_command_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    invoked = invoke(*args)

    assert (invoked.exit_code, invoked.stdout) == (1, "")
    assert invoked.stderr.startswith("corral: client_not_configured: ")
    assert "CORRAL_REDIS_URL" in invoked.stderr


def test_an_id_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(DeadLetters, "drop", refuse)
    invoked = invoke("dead", "drop", "acme:\udcff")

    assert (invoked.exit_code, invoked.stdout) == (1, "")
    assert "not UTF-8" in invoked.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("policy.yaml", "", "neither .toml nor .json"),
        ("policy.toml", "wall_s = 5", "wall_s"),
        ("absent.toml", None, "cannot be read"),
    ],
)
def test_a_policy_file_that_cannot_hold_changes_nothing(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    invoked = invoke("tenants", "set", "acme", "--policy", str(tmp_path / name))

    assert (invoked.exit_code, invoked.stdout) == (1, "")
    assert invoked.stderr.startswith("corral: invalid_setting: policy: ")
    assert said in invoked.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("tenants", "set", "acme", "--payload", "much"),
        ("tenants", "set", "acme", "--unset", "everything"),
        ("tenants", "list", "--limit", "0"),
        ("dead", "list", "--limit", "1000000"),
        ("jobs", "cancel", "acme:1", "--wait", "0"),
    ],
)
def test_wrong_options_are_told_apart_from_failures(args: tuple[str, ...]) -> None:
    assert invoke(*args).exit_code == 2
