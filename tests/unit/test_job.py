"""The job: what can be built, and what no program could be started with."""

from __future__ import annotations

import pytest

from corral import ErrInvalidJob, Job, Limits
from corral.job import LOWEST, MAX_ARGUMENT_BYTES, MAX_PROGRAM_BYTES, MAX_STDIN_BYTES


def test_a_job_needs_no_more_than_a_program() -> None:
    job = Job(argv=("true",))

    assert (job.image, job.cwd, job.network, job.user) == ("python", "/workspace", "none", "nobody")
    assert (job.privileged, job.read_only_root, job.attempts) == (False, True, 1)
    assert job.limits == Limits()


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Job(argv=("true",)).network = "host"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"argv": ("a\0b",)}, "$.argv[0]"),
        ({"argv": ("sh", "-c", "\0")}, "$.argv[2]"),
        ({"argv": ("", "x")}, "$.argv[0]"),
        ({"argv": ("a" * (MAX_PROGRAM_BYTES + 1),)}, "$.argv[0]"),
        ({"argv": ("\N{EURO SIGN}" * (MAX_PROGRAM_BYTES // 3 + 1),)}, "$.argv[0]"),
        ({"env": {"A": "\0"}}, "$.env"),
        ({"cwd": "/workspace/../etc"}, "$.cwd"),
        ({"cwd": "/.."}, "$.cwd"),
        ({"cwd": "/a\0"}, "$.cwd"),
        ({"user": "alice"}, "$.user"),
        ({"user": "-1"}, "$.user"),
        ({"user": "1000:wheel"}, "$.user"),
        ({"user": "1:2:3"}, "$.user"),
        ({"user": "1000:"}, "$.user"),
        ({"user": "\N{ARABIC-INDIC DIGIT ZERO}"}, "$.user"),
        ({"user": str(2**31)}, "$.user"),
        ({"user": "9" * 5000}, "$.user"),
        ({"argv": ("a" * (MAX_ARGUMENT_BYTES + 1),)}, "$.argv"),
        ({"argv": ("\N{EURO SIGN}" * (MAX_ARGUMENT_BYTES // 3 + 1),)}, "$.argv"),
        ({"env": {"A": "a" * MAX_ARGUMENT_BYTES}}, "$.argv"),
        ({"stdin": bytes(MAX_STDIN_BYTES + 1)}, "$.stdin"),
        ({"start_within_s": float("inf")}, "$.start_within_s"),
    ],
)
def test_what_no_program_can_be_started_with_names_the_field(
    fields: dict[str, object], path: str
) -> None:
    with pytest.raises(ErrInvalidJob) as caught:
        Job(**{"argv": ("true",), **fields})  # type: ignore[arg-type]

    assert caught.value.path == path
    assert len(str(caught.value)) < 300


def test_a_program_may_have_the_longest_path_there_is() -> None:
    longest = "/" * MAX_PROGRAM_BYTES

    assert Job(argv=(longest, "x" * 100_000)).argv[0] == longest


@pytest.mark.parametrize("name", ["wall_s", "cpu_time_s", "cpus"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_limit_that_json_would_lose_is_refused(name: str, value: float) -> None:
    with pytest.raises(ErrInvalidJob) as caught:
        Limits(**{name: value})  # type: ignore[arg-type]

    assert caught.value.path == f"$.limits.{name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpus", 0.049), ("cpus", 1e-9), ("memory_bytes", 2**24 - 1), ("open_files", 15)],
)
def test_a_limit_with_which_no_sandbox_starts_is_refused(name: str, value: float) -> None:
    with pytest.raises(ErrInvalidJob, match="at least") as caught:
        Limits(**{name: value})  # type: ignore[arg-type]

    assert caught.value.path == f"$.limits.{name}"


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_limit_and_unlimited_can_be_asked_for(name: str) -> None:
    for value in (LOWEST[name], 0):
        assert getattr(Limits(**{name: value}), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("nobody", (65534, 65534)),
        ("", (65534, 65534)),
        ("1000", (1000, 1000)),
        ("1000:1001", (1000, 1001)),
        ("nobody:nogroup", (65534, 65534)),
        (":5", (65534, 5)),
        ("root", (0, 65534)),
        ("0", (0, 0)),
        (str(2**31 - 1), (2**31 - 1, 2**31 - 1)),
    ],
)
def test_a_user_is_two_numbers(user: str, ids: tuple[int, int]) -> None:
    assert Job(argv=("true",), user=user).ids() == ids


@pytest.mark.parametrize("cwd", ["/", "/a..b", "/...", "/workspace/..hidden"])
def test_dots_that_do_not_climb_are_accepted(cwd: str) -> None:
    assert Job(argv=("true",), cwd=cwd).cwd == cwd
