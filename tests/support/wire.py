"""Jobs and endings as arq hands them to the codec, with every field set."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from hypothesis import settings

from corral import (
    EffectiveLimits,
    ErrSecurityViolation,
    HostLimits,
    Job,
    Limits,
    Mount,
    Outcome,
    Phases,
    Provenance,
    Result,
    Termination,
    Usage,
    Violation,
)

MANY = settings(max_examples=60)

FULL_JOB = Job(
    argv=("python3", "-c", "print('\N{SNOWMAN}')"),
    image="python",
    env={"LANG": "C.UTF-8", "EMPTY": ""},
    cwd="/workspace/src",
    stdin=b"\x00\xff in",
    limits=Limits(
        wall_s=10.5,
        cpu_time_s=20.0,
        cpus=0.5,
        memory_bytes=268435456,
        pids=32,
        disk_bytes=1048576,
        file_bytes=524288,
        output_bytes=65536,
        output_kill_bytes=8388608,
        open_files=256,
    ),
    network="sandbox",
    user="1000:1000",
    start_within_s=60.0,
    attempts=3,
    labels={"request": "42"},
    privileged=True,
    read_only_root=False,
    seccomp="unconfined",
    capabilities=("CAP_NET_RAW",),
    mounts=(Mount(source="/srv", target="/data"),),
    host_settings={"platform": "set"},
)
FULL_RESULT = Result(
    outcome=Outcome.WALL_TIMEOUT,
    signal=9,
    stdout=b"head\xfftail",
    stderr=b"warning",
    stdout_bytes=5000,
    stderr_bytes=7,
    stdout_gap=4,
    truncated=True,
    duration_s=10.5,
    usage=Usage(cpu_s=1.25, peak_memory_bytes=33554432, peak_tasks=12),
    phases=Phases(queued_s=0.25, sandbox_s=0.5, run_s=10.5, teardown_s=0.125),
    timing_unreliable=True,
    limits=EffectiveLimits(wall_s=10.5),
    host_limits=HostLimits(memory_bytes=268435456, swap_bytes=None, cpus=0.5, tasks=96),
    termination=Termination(
        cause=Outcome.WALL_TIMEOUT,
        requested_by="limit",
        steps=("runsc_kill", "cgroup_kill"),
        verified_dead=True,
        latency_s=0.0625,
    ),
    provenance=Provenance(
        image_digest="sha256:0123",
        runsc_version="release-20260101.0",
        platform="systrap",
        host="host-1",
        attempt=1,
        start="cold",
    ),
    started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    labels={"request": "42"},
)
REJECTED = ErrSecurityViolation(
    (Violation(rule="root_user", field="$.user", value="root", allowed="nobody"),),
    context={"tenant": "acme"},
)


def call(job: object) -> Mapping[str, object]:
    """What arq gives its serializer for a job."""
    return {"t": None, "f": "execute", "a": (job,), "k": {}, "et": 1_767_322_245_000}


def ending(result: object) -> Mapping[str, object]:
    """What arq gives its serializer for a result."""
    return {
        "t": 1,
        "f": "execute",
        "a": (FULL_JOB,),
        "k": {},
        "et": 1_767_322_245_000,
        "s": isinstance(result, Result),
        "r": result,
        "st": 1_767_322_245_250,
        "ft": 1_767_322_256_000,
        "q": "arq:queue:acme",
        "id": "acme:1",
    }


def envelope(job: bytes) -> bytes:
    return b'{"v":1,"f":"execute","et":1,"a":[%s]}' % job
