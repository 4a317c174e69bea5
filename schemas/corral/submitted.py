"""A job on its way: its status, its result, its cancel."""

from __future__ import annotations

import asyncio
from typing import cast

from msgspec import structs
from redis.asyncio import Redis

from corral import codec, keys
from corral.done import DoneListener
from corral.ending_codec import encode_ending
from corral.errors import CorralError, ErrJobNotFound
from corral.reaching import reaching
from corral.result import Outcome, Result
from corral.scripts import Script
from corral.status import Explanation, JobStatus, Reply, explained

_FIRST_LOOK_S = 0.1
_LAST_LOOK_S = 1.0
# For a cancel before any worker has told its settings.
_KEEP_RESULT_MS = 3600 * 1000
_STREAM_ENTRIES = 1000
_MOST_INLINE_BYTES = 256 * 1024


class SubmittedJob:
    """A job that was submitted: ask it for its status and result, or cancel it."""

    def __init__(
        self,
        redis: Redis,
        job_id: str,
        *,
        tenant: str,
        listener: DoneListener,
        canceller: Script,
        explainer: Script,
    ) -> None:
        self.id = job_id
        self.tenant = tenant
        self._redis = redis
        self._listener = listener
        self._canceller = canceller
        self._explainer = explainer

    async def result(self, *, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Wait until the job has ended and return how.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            CorralError: the job was rejected, or a fault struck: the typed
                error, as the worker raised it.
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
            TimeoutError: the time was up first. The job goes on.

        Cancelling the call leaves the job alone.
        """
        async with asyncio.timeout(timeout):
            return codec.decode_result(await self._wait())

    async def status(self) -> JobStatus:
        """Return where the job is now.

        Raises:
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
        """
        async with reaching(self._redis), self._redis.pipeline(transaction=True) as pipe:
            pipe.exists(keys.result(self.id))
            pipe.exists(keys.in_progress(self.id))
            pipe.zscore(keys.queue(self.tenant), self.id)
            pipe.time()
            finished, running, score, (seconds, micros) = await pipe.execute()
        if finished:
            return JobStatus.FINISHED
        if running:
            return JobStatus.RUNNING
        if score is None:
            raise self._unknown()
        late = score > seconds * 1000 + micros / 1000
        return JobStatus.DEFERRED if late else JobStatus.QUEUED

    async def explain(self) -> Explanation:
        """Return where the job is now, and why it waits if it does, or how it ended.

        Raises:
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
        """
        async with reaching(self._redis):
            reply = cast("Reply", await self._explainer.run(self._redis, self.tenant, self.id))
            found = explained(self.id, self.tenant, reply)
            if found is None:
                raise self._unknown()
            if found.status is not JobStatus.FINISHED:
                return found
            data = await self._redis.get(keys.result(self.id))
        if data is None and not found.dead_letter:
            raise self._unknown()
        if data is None:
            return found
        try:
            return structs.replace(found, outcome=codec.decode_result(data).outcome)
        except CorralError as error:
            return structs.replace(found, error=error.code)

    async def cancel(self, *, timeout: float | None = 30.0) -> bool:  # noqa: ASYNC109
        """Cancel the job, exactly, and wait until it has ended.

        A queued job never starts. A running one is stopped by its worker.

        Returns True if the job ended by this, or an earlier, cancel: then its
        sandbox is dead, and :meth:`result` has the output it wrote until then.
        False if it had ended, or ended just then, by itself.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            ErrJobNotFound: there is no such job, or its result has expired.
            ErrDaemonUnavailable: Redis does not answer.
            TimeoutError: the time was up first. The request stands.
        """
        async with reaching(self._redis, retry_safety="unknown"):
            found = await self._canceller.run(
                self._redis,
                self.tenant,
                self.id,
                encode_ending(Result(outcome=Outcome.CANCELLED)),
                _KEEP_RESULT_MS,
                _STREAM_ENTRIES,
                _MOST_INLINE_BYTES,
            )
        if found == b"unknown":
            raise self._unknown()
        try:
            async with asyncio.timeout(timeout):
                ending = await self._wait()
        finally:
            if found == b"running":
                await self._forget_cancel_if_finished()
        try:
            return codec.decode_result(ending).outcome is Outcome.CANCELLED
        except CorralError:
            return False

    async def _forget_cancel_if_finished(self) -> None:
        # arq never drops a request that came too late: it would hit the next
        # job of the same id (python-arq/arq#485).
        async with reaching(self._redis):
            if await self._redis.exists(keys.result(self.id)):
                await self._redis.zrem(keys.ABORT, self.id)

    async def _wait(self) -> bytes:
        pause = _FIRST_LOOK_S
        async with self._listener.watching(self.id) as done:
            while True:
                async with reaching(self._redis), self._redis.pipeline(transaction=False) as pipe:
                    # In this order: whoever ends a job writes its result as it leaves the queue.
                    pipe.zscore(keys.queue(self.tenant), self.id)
                    pipe.get(keys.result(self.id))
                    score, data = await pipe.execute()
                if data is not None:
                    return bytes(data)
                if score is None:
                    raise self._unknown()
                # Stock arq workers tell nobody, and messages can be lost.
                if told := await done.wait(pause):
                    return told
                pause = min(pause * 2, _LAST_LOOK_S)

    def _unknown(self) -> ErrJobNotFound:
        return ErrJobNotFound(
            f"there is no job {self.id}: it was never submitted here, or its result has expired",
            context={"job_id": self.id},
        )
