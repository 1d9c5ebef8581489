"""One request of a session, from submit to its last finish."""

import asyncio

from loraplex.v1 import generation_pb2
from loraplex_client.convert import generation
from loraplex_client.delta import Delta
from loraplex_client.output import PromptInfo
from loraplex_client.token_order import TokenOrder
from loraplex_contract import status
from loraplex_contract.errors import LoraplexError


class OpenRequest:
    """Written by the session's reader, read by one stream.

    The inbox holds at most what the request may generate: a stream that is not read costs its own output, and stops
    no other stream of the session.
    """

    def __init__(self, handle: int, request_id: str, num_sequences: int) -> None:
        self.handle = handle
        self.request_id = request_id
        self.prompt: PromptInfo | None = None
        self._order = TokenOrder(num_sequences)
        self._inbox: asyncio.Queue[Delta | LoraplexError] = asyncio.Queue()
        self._is_abandoned = False

    @property
    def is_complete(self) -> bool:
        return self._order.is_complete

    def start(self, pb: generation_pb2.PromptInfo) -> None:
        """A second one replaces the first: it adds the prompt's logprobs."""
        self.prompt = generation.prompt_info(pb)

    def add(self, pb: generation_pb2.SequenceDelta) -> None:
        """Raises Internal if the delta is out of order."""
        self._order.check(pb)
        if self._is_abandoned:
            return
        self._inbox.put_nowait(
            status.error_from_pb(pb.finish.error) if generation.is_failed(pb) else generation.delta(pb)
        )

    def fail(self, error: LoraplexError) -> None:
        self._inbox.put_nowait(error)

    def abandon(self) -> None:
        """Nobody reads on: what still comes is checked and dropped."""
        self._is_abandoned = True
        while not self._inbox.empty():
            self._inbox.get_nowait()

    async def take(self) -> Delta:
        """The next delta, in order. Raises the error that ended the request."""
        item = await self._inbox.get()
        if isinstance(item, LoraplexError):
            raise item
        return item
