"""A job as JSON: what stands in an envelope as the one argument of the call."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import UNSET, UnsetType

from corral.errors import ErrInvalidJob
from corral.job import Job
from corral.malformed import check_size, malformed
from corral.policy import HOST_OWNED_FIELDS

MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
"""Most bytes an encoded job may take."""


class _WireJob(Job, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job that may name settings of the host, so that the policy can refuse them by name."""

    runsc_path: msgspec.Raw | UnsetType = UNSET
    root_dir: msgspec.Raw | UnsetType = UNSET
    platform: msgspec.Raw | UnsetType = UNSET
    runsc_flags: msgspec.Raw | UnsetType = UNSET


_job = msgspec.json.Decoder(Job)
_wire_job = msgspec.json.Decoder(_WireJob)
_encoder = msgspec.json.Encoder()
_ordered = msgspec.json.Encoder(order="deterministic")


def encode_job(job: object) -> bytes:
    """Return a job, or what describes one in plain types, as JSON.

    Raises:
        ErrInvalidJob: it does not decode again, or is too large.
    """
    try:
        data = _encoder.encode(job)
    except (TypeError, ValueError, RecursionError) as error:
        raise ErrInvalidJob(f"the job cannot be written as JSON: {error}") from error
    decode_job(data)
    return data


def digest_job(job: object) -> str:
    """Return a digest that equal jobs share, in hex.

    Raises:
        ErrInvalidJob: it is no job, or is too large.
    """
    # Decoded first: a caller may have given 5 where another gave 5.0.
    return hashlib.sha256(_ordered.encode(decode_job(encode_job(job)))).hexdigest()


def decode_job(data: bytes | memoryview) -> Job:
    """Return the job that ``data`` holds.

    Settings of the host among its fields are moved to ``host_settings``, where
    the policy refuses them by name.

    Raises:
        ErrInvalidJob: it is not a job, with the path of the offending field.
    """
    check_size(data, MAX_PAYLOAD_BYTES)
    try:
        return _job.decode(data)
    except (ValueError, RecursionError):
        pass  # it is no job, or one that names settings of the host
    try:
        wire = _wire_job.decode(data)
    except (ValueError, RecursionError) as error:
        raise malformed(error) from error
    fields = {name: getattr(wire, name) for name in Job.__struct_fields__}
    if found := [name for name in sorted(HOST_OWNED_FIELDS) if getattr(wire, name) is not UNSET]:
        fields["host_settings"] = dict.fromkeys(found, "set")
    return Job(**fields)
