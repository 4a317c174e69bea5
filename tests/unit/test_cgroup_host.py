"""How a host does cgroups, and where those of the sandboxes are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_v1 import CgroupV1
from corral_worker.sandbox.cgroup_v2 import CgroupV2

V1 = """\
22 1 0:20 / /proc rw,nosuid - proc proc rw
24 1 0:22 / /weird\\040place rw shared:3 - tmpfs  rw,size=1k
30 24 0:26 / /cg/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
31 24 0:27 / /cg/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /cg/pids rw master:2 propagate_from:1 - cgroup none rw,pids
33 24 0:29 / /cg/systemd rw - cgroup systemd rw,xattr,name=systemd
34 24 0:30 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = """\
22 1 0:20 / /proc rw,nosuid - proc proc rw
34 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate
"""


def host_v1(parent: str = "/corral") -> CgroupHost:
    membership = "5:memory:/user/me\n2:pids:/other\n1:name=systemd:/init\n0::/unified\n"
    return CgroupHost(parent, mountinfo=V1, membership=membership)


def test_a_host_with_all_controllers_in_version_1_is_one() -> None:
    host = host_v1()

    assert host.version == 1
    assert isinstance(host.sandbox("x"), CgroupV1)
    assert host._hierarchies["cpu"] == host._hierarchies["cpuacct"] == Path("/cg/cpu,cpuacct")
    assert host._hierarchies["systemd"] == Path("/cg/systemd")


def test_a_host_with_the_unified_hierarchy_alone_is_version_2() -> None:
    host = CgroupHost("/corral", mountinfo=V2, membership="0::/system.slice/x.service\n")

    assert host.version == 2
    assert isinstance(host.sandbox("x"), CgroupV2)


def test_a_hybrid_host_that_lacks_a_controller_in_version_1_is_version_2() -> None:
    mountinfo = "".join(line for line in V1.splitlines(keepends=True) if "pids" not in line)
    host = CgroupHost("/corral", mountinfo=mountinfo, membership="0::/\n")

    assert host.version == 2


def test_a_host_on_which_limits_would_not_hold_is_refused() -> None:
    mountinfo = "".join(
        line for line in V1.splitlines(keepends=True) if "pids" not in line and "2 cg" not in line
    )

    with pytest.raises(CgroupError, match="version 1 lacks pids"):
        CgroupHost("/corral", mountinfo=mountinfo, membership="")


@pytest.mark.parametrize(
    ("mountinfo", "membership", "expected"),
    [
        (V1, "5:cpu,memory:/user/me\n0::/unified\n", "/user/me/jobs"),
        (V2, "0::/system.slice/corral.service\n", "/system.slice/corral.service/jobs"),
        (V2, "0::/\n", "/jobs"),
        (V2, "1:name=x:/a:b\n0::/with:colon\n", "/with:colon/jobs"),
        (V1, "", "/jobs"),
    ],
)
def test_a_delegated_parent_is_below_the_workers_own_cgroup(
    mountinfo: str, membership: str, expected: str
) -> None:
    host = CgroupHost("delegated", mountinfo=mountinfo, membership=membership)

    assert host.parent == expected


@pytest.mark.parametrize("parent", ["/corral", "/corral/", "/"])
def test_a_sandboxes_cgroup_is_below_the_parent(parent: str) -> None:
    path = host_v1(parent).sandbox("corral-1").runsc_path

    assert path == f"{parent.rstrip('/')}/corral-1"


def test_in_version_2_runsc_gets_a_cgroup_below_the_one_that_holds() -> None:
    host = CgroupHost("/corral", mountinfo=V2, membership="0::/\n")

    assert host.sandbox("corral-1").runsc_path == "/corral/corral-1/sandbox"


def fake_host(tmp_path: Path, parent: str, membership: str = "0::/\n") -> CgroupHost:
    return CgroupHost(
        parent, mountinfo=f"1 2 0:3 / {tmp_path} rw - cgroup2 cgroup2 rw\n", membership=membership
    )


def test_in_version_2_controllers_are_enabled_all_the_way_down(tmp_path: Path) -> None:
    host = fake_host(tmp_path, "/a/b")

    host.prepare()
    host.prepare()

    for directory in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        assert (directory / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_in_a_delegated_cgroup_the_worker_moves_into_a_leaf_first(tmp_path: Path) -> None:
    own = tmp_path / "corral.service"
    own.mkdir()

    fake_host(tmp_path, "delegated", "0::/corral.service\n").prepare()

    assert (own / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (own / "jobs" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    # What is above belongs to somebody else.
    assert not (tmp_path / "cgroup.subtree_control").exists()


def test_in_version_2_the_parent_stays_for_other_workers(tmp_path: Path) -> None:
    (tmp_path / "corral").mkdir()

    fake_host(tmp_path, "/corral").release()

    assert (tmp_path / "corral").exists()


def test_in_version_1_an_empty_parent_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    mountinfo = "".join(
        f"1 2 0:3 / {tmp_path}/{name} rw - cgroup cgroup rw,{name}\n"
        for name in ("memory", "pids", "cpu", "cpuacct")
    )
    host = CgroupHost("/corral", mountinfo=mountinfo, membership="0::/\n")
    for name in ("memory", "pids/corral", "cpu"):
        (tmp_path / name / "corral").mkdir(parents=True)

    host.release()
    host.release()

    assert [path.name for path in sorted(tmp_path.glob("*/corral"))] == ["corral"]
    assert (tmp_path / "pids" / "corral" / "corral").exists()
