"""What corral doctor makes of a host: each judgement."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral import HostLimits
from corral_worker.doctor import gvisor, leftovers, limits, machine, redis_server, stock
from corral_worker.doctor.finding import Finding, Status
from corral_worker.doctor.machine import Room
from corral_worker.images.store import ImageStore
from corral_worker.reaper.estate import Doubt
from corral_worker.reaper.sweep import Survey
from corral_worker.reaper.trace import Trace
from corral_worker.sandbox.cgroup import Counters
from corral_worker.secret import Secret
from corral_worker.settings import Settings

MIB, GIB = 1024**2, 1024**3
SETTINGS = Settings(redis_url=Secret("redis://127.0.0.1:1/0"), slots=4)
ALL_CAPABILITIES = 2**41 - 1
SYS_ADMIN = 1 << 21


def room(*, free: int = 2 * GIB, inodes: int = 10**6, free_inodes: int = 10**6) -> Room:
    return Room(
        directory=Path("/var/lib/corral"),
        free_bytes=free,
        inodes=inodes,
        free_inodes=free_inodes,
        read_only=False,
    )


HELD = HostLimits(memory_bytes=64 * MIB, swap_bytes=0, cpus=0.5, tasks=64)


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (machine.kernel("6.1.0-18-amd64", "x86_64"), "ok"),
        (machine.kernel("6.18.44", "aarch64"), "ok"),
        (machine.kernel("5.15.0-91-generic", "x86_64"), "warn"),
        (machine.kernel("5.2.0", "x86_64"), "fail"),
        (machine.kernel("6.1.0", "riscv64"), "fail"),
        (machine.kernel("strange", "x86_64"), "fail"),
        (machine.rights(0, ALL_CAPABILITIES), "ok"),
        (machine.rights(1000, ALL_CAPABILITIES), "fail"),
        (machine.rights(0, ALL_CAPABILITIES & ~SYS_ADMIN), "fail"),
        (machine.processors(1, SETTINGS), "ok"),
        (machine.processors(0, SETTINGS), "warn"),
        (machine.memory(8 * GIB, 4 * GIB, SETTINGS), "ok"),
        (machine.memory(GIB, 900 * MIB, SETTINGS), "warn"),
        (machine.memory(8 * GIB, 100 * MIB, SETTINGS), "fail"),
        (machine.disk("host.disk", room()), "ok"),
        (machine.disk("host.disk", room(inodes=0, free_inodes=0)), "ok"),
        (machine.disk("host.disk", room(free=500 * MIB)), "warn"),
        (machine.disk("host.disk", room(free=MIB)), "fail"),
        (machine.disk("host.disk", room(free_inodes=15_000)), "warn"),
        (machine.disk("host.disk", room(free_inodes=10)), "fail"),
        (machine.descriptors(1_048_576, 4), "ok"),
        (machine.descriptors(-1, 4), "ok"),
        (machine.descriptors(256, 4), "fail"),
        (machine.open_files(10, 1000), "ok"),
        (machine.open_files(900, 1000), "warn"),
        (machine.tasks(32_768, SETTINGS), "ok"),
        (machine.tasks(1000, SETTINGS), "warn"),
        (machine.tasks_left(256, 256), "ok"),
        (machine.tasks_left(255, 256), "warn"),
        (machine.tasks_left(None, 256), "ok"),
        (machine.clock(0), "ok"),
        (machine.clock(5), "warn"),
        (limits.swap(0, has_swap=True), "ok"),
        (limits.swap(None, has_swap=False), "ok"),
        (limits.swap(None, has_swap=True), "fail"),
        (limits.counters(Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=1, oom_kills=0)), "ok"),
        (
            limits.counters(Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)),
            "warn",
        ),
        (gvisor.runtime("/usr/bin/runsc", "release-20240729.0"), "ok"),
        (gvisor.runtime("/usr/bin/runsc", "0.0~20221219.0"), "fail"),
        (gvisor.platform("systrap", has_kvm=False), "ok"),
        (gvisor.platform("ptrace", has_kvm=False), "warn"),
        (gvisor.platform("kvm", has_kvm=True), "ok"),
        (gvisor.platform("kvm", has_kvm=False), "fail"),
        (stock.presence({"base", "python"}, {"base", "python"}, Path("/i")), "ok"),
        (stock.presence({"mine"}, {"mine"}, Path("/i")), "warn"),
        (stock.presence(set(), set(), Path("/i")), "fail"),
        (stock.presence({"base", "python"}, {"base", "python", "mine"}, Path("/i")), "fail"),
        (stock.tool("umoci", "/usr/bin/umoci", package="umoci", builds="OCI images"), "ok"),
        (stock.tool("umoci", None, package="umoci", builds="OCI images"), "warn"),
        (redis_server.latency([0.001, 0.001, 0.5]), "ok"),
        (redis_server.latency([0.05, 0.05, 0.001]), "warn"),
        (redis_server.memory({"maxmemory_policy": "noeviction", "maxmemory": 0}), "ok"),
        (redis_server.memory({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}), "warn"),
        (redis_server.memory({"maxmemory_policy": "allkeys-lru", "maxmemory": 1}), "fail"),
        (
            redis_server.memory(
                {"maxmemory_policy": "noeviction", "maxmemory": 100, "used_memory": 95}
            ),
            "warn",
        ),
        (redis_server.persistence({"aof_enabled": 1}), "ok"),
        (redis_server.persistence({"aof_enabled": 0}), "warn"),
        (redis_server.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}), "fail"),
        (redis_server.clock(0.2), "ok"),
        (redis_server.clock(-3.0), "warn"),
    ],
)
def test_what_is_seen_is_judged(finding: Finding, status: Status) -> None:
    assert finding.status == status


def test_a_finding_that_is_not_right_says_what_to_do_in_a_sentence() -> None:
    finding = machine.disk("host.disk", room(free=MIB))

    assert finding.remedy == "Free at least 1024 MiB there."


@pytest.mark.parametrize(
    ("info", "bad"),
    [
        ({"redis_version": "7.0.15", "role": "master"}, set()),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0", "role": "master"}, set()),
        ({"redis_version": "6.2.14", "role": "master"}, {"redis.version"}),
        ({"role": "master"}, set()),
        ({"redis_version": "7.0.15", "role": "slave"}, {"redis.role"}),
        ({"redis_version": "7.0.15", "redis_mode": "cluster"}, {"redis.version"}),
    ],
)
def test_a_server_is_judged_by_what_it_says(info: dict[str, object], bad: set[str]) -> None:
    assert {each.name for each in redis_server.server(info) if each.status != "ok"} == bad


async def test_each_limit_that_was_read_back_is_a_finding() -> None:
    found = list(limits.limits(HELD, has_swap=True))

    assert [finding.name for finding in found] == [
        "limits.memory",
        "limits.swap",
        "limits.cpus",
        "limits.tasks",
    ]
    assert {finding.status for finding in found} == {"ok"}


def test_what_dead_workers_left_is_counted_by_kind_and_what_is_in_doubt_is_named() -> None:
    survey = Survey(
        dead=(
            Trace(kind="cgroup", worker="0123abcd", name="/corral/a"),
            Trace(kind="state_file", worker="0123abcd", name="r/a"),
            Trace(kind="cgroup", worker="0123abcd", name="/corral/b"),
        ),
        doubts=(Doubt(name="/state/w-1", reason="another user made it"),),
    )

    dead, doubt = leftovers.judged(survey)

    assert (dead.status, dead.seen) == ("warn", "of workers that died: 2 cgroup, 1 state file")
    assert (doubt.status, doubt.seen) == ("warn", "/state/w-1: another user made it")


def test_a_host_without_leftovers_is_told_so() -> None:
    assert [each.status for each in leftovers.judged(Survey())] == ["ok"]


async def test_images_whose_bytes_have_changed_are_found(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    (tmp_path / "rootfs").write_bytes(bytes(1024) + (0xE0F5E1E2).to_bytes(4, "little") + bytes(99))
    image = await store.install(tmp_path / "rootfs", name="mine", source="test")
    settings = Settings(redis_url=Secret(""), image_dir=store.root)
    before = await stock.look_at_images(settings)

    image.rootfs.chmod(0o600)
    with image.rootfs.open("r+b") as file:
        file.write(b"changed")
    after = await stock.look_at_images(settings)

    assert [each.status for each in before if each.name == "images.mine"] == ["ok"]
    assert [each.status for each in after if each.name == "images.mine"] == ["fail"]


async def test_a_name_without_its_image_is_found(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "mine").symlink_to("../sha256/gone")

    (found,) = await stock.look_at_images(Settings(redis_url=Secret(""), image_dir=tmp_path))

    assert found.status == "fail"
    assert found.remedy == "Build again: corral images build mine."
