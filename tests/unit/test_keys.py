"""Keys and ids."""

from __future__ import annotations

import re
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral import ErrInvalidJob, keys


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True))
def test_an_id_tells_its_tenant(tenant: str) -> None:
    assert keys.tenant_of(keys.new_job_id(tenant)) == tenant


@given(st.text())
def test_any_text_is_a_tenant_or_refused(text: str) -> None:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", text):
        assert keys.queue(text) == f"arq:queue:{text}"
        return

    with pytest.raises(ErrInvalidJob) as caught:
        keys.queue(text)
    assert caught.value.path == "$.tenant"


def test_the_unique_part_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(keys.new_job_id("acme").partition(":")[2])
    after = time.time_ns() // 1_000_000

    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= after


def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for millisecond in (1, 2, 1_700_000_000_000, 1_700_000_000_001):
        monkeypatch.setattr(time, "time_ns", lambda now=millisecond: now * 1_000_000)
        made.append(keys.new_job_id("acme"))

    assert made == sorted(made)


def test_ids_are_not_repeated() -> None:
    assert len({keys.new_job_id("acme") for _ in range(1000)}) == 1000


def test_keys_are_arqs() -> None:
    assert [
        keys.queue("acme"),
        keys.job("acme:1"),
        keys.in_progress("acme:1"),
        keys.retry("acme:1"),
        keys.result("acme:1"),
        keys.ABORT,
    ] == [
        "arq:queue:acme",
        "arq:job:acme:1",
        "arq:in-progress:acme:1",
        "arq:retry:acme:1",
        "arq:result:acme:1",
        "arq:abort",
    ]
