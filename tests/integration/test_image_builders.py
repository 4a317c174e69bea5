"""Images built with the real tools.

The default image ``python`` is not built here: it takes most of a minute, and
preparing a host to run corral builds it anyway.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from corral.errors import ErrInvalidJob
from corral_worker.cli.images import images
from corral_worker.images.apt import HostApt
from corral_worker.images.builder import ImageBuilder, default_recipes
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.recipe import BaseImage, DebianPackages, Directory, OciImage
from corral_worker.images.store import Image, ImageStore
from corral_worker.images.tree import MOUNT_POINTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root")

LONG_AGO = 1_600_000_000


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout


def extract(image: Image, target: Path) -> Path:
    """Unpack an image as root, with owners and modes."""
    run("fsck.erofs", f"--extract={target}", "--preserve", image.rootfs)
    return target


def no_leftovers(store: ImageStore) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text()
    return not list((store.root / "tmp").iterdir()) and str(store.root) not in mounts


def indexes(store: ImageStore) -> list[Path]:
    """What apt has downloaded so far for a Debian that is being built."""
    return list(store.root.glob("tmp/*/tree/var/lib/apt/lists/*Packages"))


def processes_of(store: ImageStore) -> list[Path]:
    """Every process that works in the store, as its environment says."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(store.root).encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def builder(store: ImageStore) -> ImageBuilder:
    return ImageBuilder(store)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small root file system with everything that is easily lost."""
    root = tmp_path / "directory"
    (root / "bin").mkdir(parents=True)
    tool = root / "bin" / "tool"
    tool.write_text("#!/bin/sh\n")
    os.chown(tool, 1000, 1001)
    tool.chmod(0o4750)
    os.utime(tool, (LONG_AGO, LONG_AGO))
    (root / "absolute").symlink_to("/etc/shadow")
    (root / "outside").symlink_to("../../../etc")
    (root / "dangling").symlink_to("nowhere")
    (root / "home").mkdir()
    (root / "home" / "hidden").touch()
    return root


@pytest.fixture
def layout(tmp_path: Path, directory: Path) -> Path:
    """An OCI layout with one image of two layers."""
    layout = tmp_path / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    run("umoci", "insert", "--image", f"{layout}:v1", directory / "bin", "/bin")
    (tmp_path / "motd").write_text("hello")
    run("umoci", "insert", "--image", f"{layout}:v1", tmp_path / "motd", "/etc/motd")
    return layout


async def test_base_is_busybox_with_users_applets_and_mount_points(
    builder: ImageBuilder, store: ImageStore, tmp_path: Path
) -> None:
    image = await builder.build(default_recipes()["base"], name="base")

    assert await store.resolve("base") == image
    assert await store.verify("base")
    assert image.source == "debian:busybox-static"
    assert image.size_bytes < 4 << 20
    assert no_leftovers(store)
    root = extract(image, tmp_path / "root")
    busybox = root / "usr/bin/busybox"
    assert not busybox.is_symlink()
    assert run("chroot", root, "/bin/sh", "-c", "echo $((6 * 7))") == "42\n"
    assert run("chroot", "--userspec=65534:65534", root, "id", "-un") == "nobody\n"
    for path, mode in MOUNT_POINTS:
        assert stat.S_IMODE((root / path).stat().st_mode) == mode
        assert not list((root / path).iterdir())


async def test_the_same_recipe_gives_the_same_digest(builder: ImageBuilder) -> None:
    first = await builder.build(BaseImage(), name="a")
    second = await builder.build(BaseImage(), name="b")

    assert first.digest == second.digest


async def test_a_directory_keeps_links_owners_modes_and_times(
    builder: ImageBuilder, store: ImageStore, directory: Path, tmp_path: Path
) -> None:
    image = await builder.build(Directory(path=directory), name="mine")

    root = extract(image, tmp_path / "root")
    tool = (root / "bin/tool").lstat()
    assert (tool.st_uid, tool.st_gid, tool.st_mtime) == (1000, 1001, LONG_AGO)
    assert stat.S_IMODE(tool.st_mode) == 0o750, "setuid is taken away"
    links = {path.name: str(path.readlink()) for path in root.iterdir() if path.is_symlink()}
    assert links == {
        "absolute": "/etc/shadow",
        "outside": "../../../etc",
        "dangling": "nowhere",
    }
    assert not (root / "home" / "hidden").exists()
    assert (directory / "home" / "hidden").exists()
    assert stat.S_IMODE((directory / "bin/tool").stat().st_mode) == 0o4750
    assert image.source == "directory"
    assert no_leftovers(store)


async def test_the_same_tree_gives_the_same_digest_wherever_it_lies(
    builder: ImageBuilder, directory: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    run("cp", "-a", directory, elsewhere)

    first = await builder.build(Directory(path=directory), name="a")
    second = await builder.build(Directory(path=elsewhere), name="b")

    assert first.digest == second.digest


async def test_a_directory_with_a_pipe_is_refused_and_leaves_nothing(
    builder: ImageBuilder, store: ImageStore, directory: Path
) -> None:
    os.mkfifo(directory / "pipe")

    with pytest.raises(ImageBuildError, match=r"here are 1: pipe\."):
        await builder.build(Directory(path=directory), name="mine")

    assert await store.list() == []
    assert no_leftovers(store)


async def test_a_directory_around_the_store_or_a_missing_one_is_refused(
    builder: ImageBuilder, tmp_path: Path
) -> None:
    with pytest.raises(ImageBuildError, match="holds the image store"):
        await builder.build(Directory(path=tmp_path))
    with pytest.raises(ImageBuildError, match="is not a directory"):
        await builder.build(Directory(path=tmp_path / "none"))


@pytest.mark.parametrize("tag", ["", ":v1"])
async def test_an_oci_layout_becomes_an_image(
    builder: ImageBuilder, store: ImageStore, layout: Path, tmp_path: Path, tag: str
) -> None:
    image = await builder.build(OciImage(reference=f"{layout}{tag}"), name="mine")

    root = extract(image, tmp_path / "root")
    assert (root / "etc/motd").read_text() == "hello"
    assert (root / "bin/tool").stat().st_uid == 1000
    assert not (root / "etc/passwd").exists(), "nothing is added to an image of others"
    assert image.source == f"oci:{layout}{tag}"
    assert no_leftovers(store)


async def test_what_is_no_oci_layout_says_so(
    builder: ImageBuilder, layout: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImageBuildError, match="is not an OCI layout"):
        await builder.build(OciImage(reference=str(tmp_path)))
    with pytest.raises(ImageBuildError, match="skopeo failed with exit code 1"):
        await builder.build(OciImage(reference=f"{layout}:no-such-tag"))


@pytest.mark.parametrize("reference", ["", "-x", "a b", "a\n", "$(x)"])
def test_a_malformed_oci_reference_never_reaches_a_tool(reference: str) -> None:
    with pytest.raises(ValueError, match="no reference"):
        OciImage(reference=reference)


@pytest.mark.parametrize("package", ["", "-x", "a,b", "../x", "A"])
def test_a_malformed_package_never_reaches_a_tool(package: str) -> None:
    with pytest.raises(ValueError, match="no name of a Debian package"):
        DebianPackages(packages=(package,))
    with pytest.raises(ValueError, match="no name of a Debian suite"):
        DebianPackages(packages=(), suite=f"/{package}")


async def test_mirrors_come_from_the_hosts_own_apt_with_updates_and_security() -> None:
    apt = await HostApt.read()

    own = apt.of_suite(apt.codename)
    other = apt.of_suite("forky")

    assert apt.codename in {source.release for source in own}
    assert {source.uri for source in own} == {source.uri for source in other}
    assert {source.release.replace(apt.codename, "forky") for source in own} == {
        source.release for source in other
    }
    assert all("main" in source.components for source in own)


async def test_a_suite_that_does_not_exist_fails_with_apts_own_words(
    builder: ImageBuilder, store: ImageStore
) -> None:
    with pytest.raises(ImageBuildError) as caught:
        await builder.build(DebianPackages(packages=(), suite="no-such-suite"), name="x")

    assert "mmdebstrap failed with exit code" in str(caught.value)
    assert "no-such-suite Release" in str(caught.value)
    assert no_leftovers(store)


async def test_a_cancelled_debian_build_leaves_no_process_no_mount_and_no_file(
    builder: ImageBuilder, store: ImageStore
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(builder.build, DebianPackages(packages=()))
        with anyio.fail_after(50):
            while not indexes(store):
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()

    assert no_leftovers(store)
    # Those in a pid namespace are killed with its first one, a moment after it.
    with anyio.fail_after(20):
        while processes_of(store):
            await anyio.sleep(0.02)


async def test_a_bad_name_is_refused_before_anything_is_built(
    builder: ImageBuilder, store: ImageStore
) -> None:
    with pytest.raises(ErrInvalidJob):
        await builder.build(BaseImage(), name="../x")

    assert not store.root.exists()


async def test_missing_tools_name_their_packages(
    builder: ImageBuilder, monkeypatch: pytest.MonkeyPatch, layout: Path, tmp_path: Path
) -> None:
    only = tmp_path / "bin"
    only.mkdir()
    for program in ("setpriv", "apt-get", "apt-config"):
        found = shutil.which(program)
        assert found
        (only / program).symlink_to(found)
    monkeypatch.setattr("corral_worker.images.tool.PATH", str(only))

    with pytest.raises(ImageBuildError, match="install the Debian package mmdebstrap"):
        await builder.build(DebianPackages(packages=()))
    with pytest.raises(ImageBuildError, match="install the Debian package skopeo"):
        await builder.build(OciImage(reference=str(layout)))


def test_an_image_that_is_there_is_not_built_again_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_IMAGE_DIR", str(tmp_path / "images"))
    tree = tmp_path / "tree"
    tree.mkdir()
    build = ("build", "mine", "--directory", str(tree))

    def outputs(*arguments: str) -> str:
        invoked = CliRunner().invoke(images, arguments)
        assert invoked.exit_code == 0, invoked.output
        return invoked.output

    assert "sha256:" in outputs(*build, "--missing")
    assert outputs(*build, "--missing") == ""
    assert "sha256:" in outputs(*build)
