from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path, PurePosixPath

import anyio
import anyio.abc
import pytest

from corral import EffectiveLimits, Job
from corral_worker.process.output import Pipe
from corral_worker.sandbox import control
from corral_worker.sandbox.bundle import SandboxSpec, oci_config
from corral_worker.sandbox.containers import (
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
    Streams,
)
from corral_worker.sandbox.control import ControlSocket

SOON_S = 20.0
DONE = b'{"success":true,"err":"","result":null}'


class Sentry:
    """Answers calls the way a test tells it to, and keeps what it was asked last."""

    def __init__(self, path: Path) -> None:
        self.control = ControlSocket(path)
        self.answers: list[bytes] = [DONE]
        self.hangs = False
        self.stays = False
        self.connections = 0
        self.heard = anyio.Event()
        self.hung_up = anyio.Event()
        self.asked: dict[str, object] = {}
        self.files: list[int] = []

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while await self.answer(stream) and self.stays:
                pass
        self.hung_up.set()

    async def answer(self, stream: anyio.abc.SocketStream) -> bool:
        """Return whether there was a call to answer."""
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        request = b""
        while True:
            await anyio.wait_readable(raw)
            data, ancillary, _, _ = raw.recvmsg(65536, socket.CMSG_SPACE(16))
            if not data:
                return False
            for _, _, files in ancillary:
                self.files += array.array("i", files)
            request += data
            try:
                self.asked = json.loads(request)
                break
            except ValueError:
                continue
        self.heard.set()
        if self.hangs:
            self.hangs = False
            await anyio.sleep_forever()
        for answer in self.answers:
            try:
                await stream.send(answer)
            except anyio.BrokenResourceError:
                return False  # whoever has asked has heard enough
            await anyio.lowlevel.checkpoint()
        return True


@pytest.fixture
async def sentry(tmp_path: Path) -> AsyncIterator[Sentry]:
    path = tmp_path / "s"
    made = Sentry(path)
    async with (
        await anyio.create_unix_listener(path) as listener,
        anyio.create_task_group() as all_,
    ):
        all_.start_soon(listener.serve, made.serve)
        yield made
        all_.cancel_scope.cancel()
    for file in made.files:
        os.close(file)


async def test_a_start_sends_the_configuration_and_the_descriptors_in_gvisors_order(
    sentry: Sentry, tmp_path: Path
) -> None:
    image = tmp_path / "rootfs.erofs"
    image.touch()
    spec = SandboxSpec(
        job=Job(argv=("true", "x" * 100_000)),
        limits=EffectiveLimits(),
        rootfs=PurePosixPath(image),
        cgroups_path="/corral/one",
    )
    with Pipe(parent="read") as out, Pipe(parent="read") as err, Pipe(parent="write") as into:
        streams = Streams(stdin=into.theirs, stdout=out.theirs, stderr=err.theirs)
        await sentry.control.start("job", spec, streams=streams, within_s=SOON_S)
        sent = [os.fstat(file).st_ino for file in sentry.files]
        given = [os.fstat(file).st_ino for file in (into.theirs, out.theirs, err.theirs)]

        assert sent == [*given, image.stat().st_ino]
    assert sentry.asked["method"] == "containerManager.StartSubcontainer"
    argument = sentry.asked["arg"]
    assert isinstance(argument, dict)
    assert argument["CID"] == "job"
    assert argument["Spec"] == json.loads(json.dumps(oci_config(spec)))
    assert argument["GoferMountConfs"] == [{"upper": 0, "lower": 2}]
    assert argument["Conf"]["Network"] == 2


async def test_without_its_image_nothing_is_asked(sentry: Sentry, tmp_path: Path) -> None:
    spec = SandboxSpec(
        job=Job(argv=("true",)),
        limits=EffectiveLimits(),
        rootfs=PurePosixPath(tmp_path / "none"),
        cgroups_path="/corral/one",
    )

    with pytest.raises(SandboxGoneError):
        await sentry.control.start(
            "job", spec, streams=Streams(stdin=0, stdout=1, stderr=2), within_s=SOON_S
        )

    assert sentry.asked == {}


async def test_a_wait_gives_the_raw_status(sentry: Sentry) -> None:
    sentry.answers = [b'{"success":true,"err":"","result":35072}']

    assert await sentry.control.wait("job", within_s=SOON_S) == 137 << 8
    assert sentry.asked == {"method": "containerManager.Wait", "arg": "job"}


async def test_an_answer_may_come_in_pieces(sentry: Sentry) -> None:
    sentry.answers = [bytes([byte]) for byte in b'{"success":true,"err":"}","result":9}\n']

    assert await sentry.control.wait("job", within_s=SOON_S) == 9


async def test_a_refusal_is_told_in_the_sandboxs_own_words(sentry: Sentry) -> None:
    sentry.answers = [b'{"success":false,"err":"no such container","result":null}']

    with pytest.raises(RefusedError) as raised:
        await sentry.control.create("job", within_s=SOON_S)

    assert raised.value.words == "no such container"


@pytest.mark.parametrize(
    "answers",
    [
        [b'{"success":1}'],
        [b'["a"]}'],
        [b'{"a":"' + b"x" * 70_000, b'"}'],
        [b'{"success":false,"err":"\xff"}'],
        [b'{"success":true,"a":' + b'{"a":' * 5000 + b"1" + b"}" * 5001],
    ],
    ids=["wrong type", "no JSON for ever", "without a bound", "no text", "without a bottom"],
)
async def test_nonsense_is_an_error(
    sentry: Sentry, answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_MOST_BYTES", 60_000)
    sentry.answers = answers

    with pytest.raises((RefusedError, SandboxLostError)):
        await sentry.control.create("job", within_s=SOON_S)


@pytest.mark.parametrize(
    "filler",
    [b"d", b"}", b"\\u003c", "\N{SNOWMAN}".encode(), b"\xff", b"\\\\"],
    ids=["letters", "braces", "escapes", "long characters", "no text", "backslashes"],
)
async def test_a_refusal_without_end_is_told_in_its_first_words(
    sentry: Sentry, filler: bytes
) -> None:
    says = b'{"success":false,"err":"creating process: not on \\"PATH\\" ['
    sentry.answers = [says + filler * 100_000 + b'"}']

    with pytest.raises(RefusedError) as raised:
        await sentry.control.create("job", within_s=SOON_S)

    assert raised.value.words.startswith('creating process: not on "PATH" [')
    assert len(raised.value.words) <= 4096


NO_NUMBERS = [b'"done"', b"null", b"-1", b"1.5", b'"\xff"', b"[" * 5000 + b"]" * 5000]


@pytest.mark.parametrize("result", [*NO_NUMBERS, b"65536", b"9" * 400])
async def test_a_status_that_is_none_is_an_error(sentry: Sentry, result: bytes) -> None:
    sentry.answers = [b'{"success":true,"err":"","result":' + result + b"}"]

    with pytest.raises(RefusedError):
        await sentry.control.wait("job", within_s=SOON_S)


async def test_a_sandbox_says_what_its_files_take(sentry: Sentry) -> None:
    sentry.answers = [b'{"success":true,"err":"","result":{"Total":130000,"Tmpfs":123456}}']

    assert await sentry.control.file_bytes(within_s=SOON_S) == 123456
    assert sentry.asked == {"method": "Usage.Collect", "arg": {"Full": True}}


@pytest.mark.parametrize("result", [*NO_NUMBERS, b'{"Total":1}', b'{"Tmpfs":"1"}', b'{"Tmpfs":-1}'])
async def test_an_answer_without_a_number_of_bytes_is_an_error(
    sentry: Sentry, result: bytes
) -> None:
    sentry.answers = [b'{"success":true,"err":"","result":' + result + b"}"]

    with pytest.raises(RefusedError):
        await sentry.control.file_bytes(within_s=SOON_S)


async def test_a_connection_serves_all_calls_of_a_block(sentry: Sentry) -> None:
    sentry.stays = True

    async with sentry.control as control:
        await control.create("one", within_s=SOON_S)
        await control.create("two", within_s=SOON_S)
        assert not sentry.hung_up.is_set()
    await control.create("three", within_s=SOON_S)

    assert sentry.asked["arg"] == {"CID": "three"}
    assert sentry.connections == 2


async def test_calls_at_the_same_time_do_not_share_a_connection(sentry: Sentry) -> None:
    sentry.stays = True

    async with sentry.control as control, anyio.create_task_group() as tasks:
        for name in ("one", "two"):
            tasks.start_soon(partial(control.create, name, within_s=SOON_S))

    assert sentry.connections == 2


async def test_the_answer_to_a_call_that_was_given_up_is_not_the_next_ones(sentry: Sentry) -> None:
    sentry.stays = sentry.hangs = True

    async with sentry.control as control:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(control.wait, "job", within_s=SOON_S))
            await sentry.heard.wait()
            tasks.cancel_scope.cancel()
        await control.create("job", within_s=SOON_S)

    assert sentry.connections == 2


async def test_a_sandbox_that_ended_after_its_last_answer_was_not_asked(sentry: Sentry) -> None:
    async with sentry.control as control:
        await control.create("job", within_s=SOON_S)
        with anyio.fail_after(SOON_S):
            await sentry.hung_up.wait()

        with pytest.raises(SandboxGoneError):
            await control.wait("job", within_s=SOON_S)


async def test_a_sandbox_that_ends_before_it_has_answered_is_lost(sentry: Sentry) -> None:
    sentry.answers = [b'{"success":']

    with pytest.raises(SandboxLostError) as raised:
        await sentry.control.wait("job", within_s=SOON_S)

    assert not isinstance(raised.value, SandboxGoneError)


async def test_a_sandbox_that_is_not_there_was_not_asked(tmp_path: Path) -> None:
    with pytest.raises(SandboxGoneError):
        await ControlSocket(tmp_path / "none").create("job", within_s=SOON_S)


async def test_no_answer_is_waited_for_longer_than_allowed(sentry: Sentry) -> None:
    sentry.hangs = True

    with pytest.raises(TimeoutError, match=r"DestroySubcontainer: no answer within 0\.05 s"):
        await sentry.control.destroy("job", within_s=0.05)
