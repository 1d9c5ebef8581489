"""A fixed number of streams at any time: where one ends, the next begins."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator

import grpc

from loraplex_contract.channel import CLIENT_OPTIONS
from tests.faults.history import History, Submission
from tests.faults.recorder import STREAM_TIMEOUT_S, CallClient, Recorder, SessionClient

NUM_LANES = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Streams of even lanes are calls of their own, those of odd lanes share a session."""

    call: CallClient
    session: SessionClient

    async def run(self, lane: int, submission: Submission) -> Recorder:
        client = self.session if lane % 2 else self.call
        return await client.run(submission)


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[Clients]:
    """At the end the session is closed from this side, and has been read to its end."""
    async with grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        session = await SessionClient(channel).open()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session.read(), name="session/read")
            yield Clients(call=CallClient(channel), session=session)
            await session.close()
        assert session.num_strange_frames == 0


class Lanes:
    """Runs submissions until there are no more, or until it is stopped; what runs then runs to its end."""

    def __init__(self, clients: Clients, submissions: Iterator[Submission]) -> None:
        self._clients = clients
        self._submissions = submissions
        self._recorders: list[Recorder] = []
        self._is_stopping = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for lane in range(NUM_LANES):
                tasks.create_task(self._keep_busy(lane), name=f"lane {lane}")

    def stop(self) -> None:
        self._is_stopping = True

    async def wait_for_turnover(self) -> None:
        """Until as many streams as there are lanes have ended from now on. Whatever the machine's pace, most streams
        then meet one blow at most."""
        wanted = len(self._recorders) + NUM_LANES
        async with asyncio.timeout(STREAM_TIMEOUT_S):
            while True:
                if len(self._recorders) >= wanted:
                    return
                await asyncio.sleep(0.02)

    def histories(self) -> list[History]:
        """Of every stream that ran. Read them when the clients have been closed: until then more may come."""
        return [recorder.history() for recorder in self._recorders]

    async def _keep_busy(self, lane: int) -> None:
        for submission in self._submissions:
            recorder = await self._clients.run(lane, submission)
            self._recorders.append(recorder)
            if self._is_stopping:
                return
