"""The image store, alone and shared between processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from corral.errors import ErrImageNotFound, ErrInvalidJob
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.store import ImageStore

UNKNOWN_DIGEST = "sha256:" + "0" * 64

HOLDS_SCRATCH = """
import sys
from pathlib import Path
import anyio
from corral_worker.images.store import ImageStore

async def main():
    async with ImageStore(Path(sys.argv[1])).scratch() as scratch:
        (scratch / "tree").mkdir()
        (scratch / "tree" / "half").write_bytes(b"x")
        print(scratch, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""

INSTALLS = """
import sys
from pathlib import Path
import anyio
from corral_worker.images.store import ImageStore

async def main():
    store = ImageStore(Path(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        for file in sys.argv[3:]:
            image = await store.install(Path(file), name="shared", source="test")
            print(image.digest, flush=True)

anyio.run(main)
"""


ONE = bytes(1024) + bytes.fromhex("e2e1f5e0") + b"one"
TWO = bytes(1024) + bytes.fromhex("e2e1f5e0") + b"two"


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return written(tmp_path / "one", ONE)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return written(tmp_path / "two", TWO)


async def test_an_installed_image_resolves_by_name_and_by_digest(
    store: ImageStore, one: Path
) -> None:
    installed = await store.install(one, name="tool-box.1_x", source="test")

    by_name = await store.resolve("tool-box.1_x")
    by_digest = await store.resolve(installed.digest)

    assert installed == by_name
    assert (None, installed.rootfs) == (by_digest.name, by_digest.rootfs)
    assert "sha256:" + hashlib.sha256(ONE).hexdigest() == installed.digest
    assert installed.rootfs.read_bytes() == ONE
    assert (len(ONE), "test") == (installed.size_bytes, installed.source)
    assert timedelta(0) <= datetime.now(UTC) - installed.created_at < timedelta(minutes=1)


async def test_an_image_that_has_been_found_is_found_again_without_a_thread(
    store: ImageStore, one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise AssertionError("a thread was asked")

    image = await store.install(one, name="box", source="test")
    other = await store.install(two, name="other", source="test")
    for known in (image, other):
        await store.resolve(known.digest)
    with monkeypatch.context() as patch:
        patch.setattr("corral_worker.images.store.in_thread", refuse)
        assert await store.resolve("box") == image
        with pytest.raises(AssertionError):
            await store.resolve("unknown")
    await store.install(two, name="box", source="test")
    with monkeypatch.context() as patch:
        patch.setattr("corral_worker.images.store.in_thread", refuse)
        assert (await store.resolve("box")).digest == other.digest


async def test_an_image_is_for_its_worker_alone(
    tmp_path: Path, store: ImageStore, one: Path
) -> None:
    store.root.mkdir(exist_ok=True)
    store.root.chmod(0o755)

    installed = await store.install(one, name="box", source="test")

    assert installed.rootfs.stat().st_mode & 0o777 == 0o400
    assert store.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("reference", ["python", UNKNOWN_DIGEST])
async def test_an_unknown_image_is_reported_with_how_to_see_and_build_images(
    store: ImageStore, reference: str
) -> None:
    with pytest.raises(ErrImageNotFound, match=r"corral images list.*corral images build"):
        await store.resolve(reference)
    with pytest.raises(ErrImageNotFound):
        await store.remove(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "", ".", "..", "../names", "a/b", "/etc", "-x", ".hidden", "Python", "a" * 64, "a\n", "a\0",
        "é", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha512:" + "0" * 64,
    ],
)  # fmt: skip
async def test_a_malformed_reference_is_an_invalid_job_and_never_a_path(
    store: ImageStore, one: Path, reference: str
) -> None:
    for attempt in (
        store.resolve(reference),
        store.remove(reference),
        store.install(one, name=reference, source="test"),
    ):
        with pytest.raises(ErrInvalidJob) as caught:
            await attempt
        assert caught.value.path == "$.image"
    assert not store.root.exists()


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", bytes(4096)])
async def test_what_is_not_erofs_is_refused(
    store: ImageStore, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    with pytest.raises(ImageBuildError):
        await store.install(file, name="x", source="test")

    assert await store.list() == []


async def test_the_same_bytes_installed_again_are_the_same_image_with_one_more_name(
    store: ImageStore, one: Path
) -> None:
    first = await store.install(one, name="a", source="first")
    second = await store.install(one, name="b", source="second")

    assert (first.digest, first.created_at, "first") == (
        second.digest,
        second.created_at,
        second.source,
    )
    assert [image.name for image in await store.list()] == ["a", "b"]


async def test_a_name_moves_and_the_image_it_meant_stays_by_digest(
    store: ImageStore, one: Path, two: Path
) -> None:
    before = await store.install(one, name="a", source="test")
    after = await store.install(two, name="a", source="test")

    assert after == await store.resolve("a")
    assert before.digest == (await store.resolve(before.digest)).digest
    assert [("a", after.digest), (None, before.digest)] == [
        (image.name, image.digest) for image in await store.list()
    ]


async def test_an_image_goes_with_its_last_name(store: ImageStore, one: Path) -> None:
    image = await store.install(one, name="a", source="test")
    await store.install(one, name="b", source="test")

    assert await store.remove("a") == ("a",)
    assert (await store.resolve("b")).name == "b"
    assert ("b", image.digest) == await store.remove("b")

    with pytest.raises(ErrImageNotFound):
        await store.resolve(image.digest)
    assert not image.rootfs.exists()


async def test_removing_a_digest_removes_all_its_names_and_no_others(
    store: ImageStore, one: Path, two: Path
) -> None:
    image = await store.install(one, name="a", source="test")
    await store.install(one, name="b", source="test")
    other = await store.install(two, name="c", source="test")

    assert {"a", "b", image.digest} == set(await store.remove(image.digest))
    assert [other] == await store.list()


async def test_an_image_removed_and_installed_by_others_is_seen_at_once(
    store: ImageStore, one: Path, two: Path
) -> None:
    elsewhere = ImageStore(store.root)
    old = await store.install(one, name="a", source="test")
    assert old == await store.resolve("a")

    await elsewhere.remove("a")
    with pytest.raises(ErrImageNotFound):
        await store.resolve("a")

    new = await elsewhere.install(two, name="a", source="test")
    assert new == await store.resolve("a")


async def test_changed_bytes_fail_verification(store: ImageStore, one: Path) -> None:
    image = await store.install(one, name="a", source="test")
    assert await store.verify("a")

    image.rootfs.write_bytes(ONE.replace(b"one", b"eno"))

    assert not await store.verify("a")


async def test_a_cut_image_is_no_image_and_installing_it_again_mends_it(
    store: ImageStore, one: Path
) -> None:
    image = await store.install(one, name="a", source="test")
    image.rootfs.write_bytes(b"")

    with pytest.raises(ErrImageNotFound):
        await store.resolve("a")

    await store.install(one, name="a", source="test")
    assert await store.verify("a")


@pytest.mark.parametrize("target", ["/etc", "../../..", "../sha256/../names", ""])
async def test_a_name_that_was_tampered_with_leads_nowhere(
    store: ImageStore, one: Path, target: str
) -> None:
    await store.install(one, name="a", source="test")
    name = store.root / "names" / "evil"
    if target:
        name.symlink_to(target)
    else:
        name.write_text("no link")

    with pytest.raises(ErrImageNotFound):
        await store.resolve("evil")
    assert [image.name for image in await store.list()] == ["a"]


async def test_processes_install_the_same_name_and_digest_at_once(
    store: ImageStore, one: Path, two: Path
) -> None:
    with (
        python(INSTALLS, store.root, 20, one, two) as a,
        python(INSTALLS, store.root, 20, two, one) as b,
    ):
        outputs = [(await anyio.to_thread.run_sync(p.communicate))[0].split() for p in (a, b)]

    assert [a.returncode, b.returncode] == [0, 0]
    assert [len(output) for output in outputs] == [40, 40]
    images = await store.list()
    assert set(outputs[0]) == {image.digest for image in images}
    assert [await store.verify(image.digest) for image in images] == [True, True]
    assert list((store.root / "tmp").iterdir()) == []


async def test_readers_never_see_a_name_or_a_half_image_in_between(
    store: ImageStore, one: Path, two: Path
) -> None:
    digests = {
        (await store.install(file, name="shared", source="test")).digest for file in (one, two)
    }

    with python(INSTALLS, store.root, 20, one, two) as process:
        while process.poll() is None:
            image = await store.resolve("shared")
            assert image.digest in digests
            assert image.rootfs.stat().st_size == image.size_bytes

    assert process.returncode == 0


async def test_a_killed_build_is_never_visible_and_a_later_build_removes_its_leftovers(
    store: ImageStore,
) -> None:
    with python(HOLDS_SCRATCH, store.root) as process:
        leftover = anyio.Path(await anyio.to_thread.run_sync(first_line, process))
        async with store.scratch():
            assert await leftover.exists(), "its owner lives"
        process.send_signal(signal.SIGKILL)

    assert await store.list() == []
    assert await (leftover / "tree" / "half").exists()
    async with store.scratch() as scratch:
        assert [scratch] == list((store.root / "tmp").iterdir())
    assert list((store.root / "tmp").iterdir()) == []


async def test_an_installer_killed_at_any_moment_leaves_only_whole_images(
    store: ImageStore, tmp_path: Path
) -> None:
    files = [written(tmp_path / str(n), ONE + os.urandom(1 << 20)) for n in range(8)]
    for lines in range(1, 6):
        with python(INSTALLS, store.root, 1000, *files) as process:
            for _ in range(lines):
                await anyio.to_thread.run_sync(first_line, process)
            process.kill()

    images = await store.list()
    assert images
    assert all([await store.verify(image.digest) for image in images])
    async with store.scratch() as scratch:
        assert [scratch] == list((store.root / "tmp").iterdir())


async def test_a_scratch_directory_goes_on_cancellation(store: ImageStore) -> None:
    with anyio.CancelScope() as scope:
        async with store.scratch() as scratch:
            (scratch / "tree").mkdir()
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert list((store.root / "tmp").iterdir()) == []


async def test_what_is_mounted_in_a_leftover_is_not_emptied(
    store: ImageStore, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    leftover = store.root / "tmp" / "leftover"
    (leftover / "dev").mkdir(parents=True)
    run("mount", "--bind", precious, leftover / "dev")
    try:
        async with store.scratch():
            pass
        assert (precious / "file").exists()
    finally:
        run("umount", leftover / "dev")

    async with store.scratch():
        assert not leftover.exists()
