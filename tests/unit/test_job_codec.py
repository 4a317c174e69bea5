"""A job as JSON."""

from __future__ import annotations

import pytest

from corral import ErrInvalidJob, Job
from corral.job_codec import MAX_PAYLOAD_BYTES, _WireJob, decode_job, encode_job
from corral.policy import HOST_OWNED_FIELDS


def test_a_job_alone_can_be_read_from_part_of_a_buffer() -> None:
    assert decode_job(memoryview(b'xx{"argv":["true"]}')[2:]) == Job(argv=("true",))


def test_a_huge_job_is_not_even_sent() -> None:
    job = Job(argv=("true",), labels={"note": "x" * (MAX_PAYLOAD_BYTES + 1)})

    with pytest.raises(ErrInvalidJob, match=str(MAX_PAYLOAD_BYTES)):
        encode_job(job)


def test_every_setting_of_the_host_can_be_recognised_on_the_wire() -> None:
    assert set(_WireJob.__struct_fields__) - set(Job.__struct_fields__) == HOST_OWNED_FIELDS
