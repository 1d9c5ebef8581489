"""The client for programs without asyncio."""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from loraplex_client.adapter_ref import AdapterChoice
from loraplex_client.async_client import AsyncClient
from loraplex_client.background_loop import SHARED
from loraplex_client.channel import DEFAULT_TARGET, Tls
from loraplex_client.cluster import Cluster
from loraplex_client.delta import Delta
from loraplex_client.output import Output, PromptInfo
from loraplex_client.prompt import Chat, Prompt
from loraplex_client.request_options import DEFAULT_OPTIONS, RequestOptions
from loraplex_client.sampling_params import SamplingParams
from loraplex_client.server_info import Model, ServerInfo
from loraplex_client.sync_adapters import SyncAdapters
from loraplex_client.token_stream import TokenStream

_T = TypeVar("_T")


class Client(SyncAdapters):
    """AsyncClient for synchronous code; may be used by several threads at once.

    ``close`` (or leaving ``with``) cancels what runs and joins the background thread. The arguments and errors are
    those of ``AsyncClient``.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        admin_target: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.target = target
        client = AsyncClient(target, token=token, tls=tls, admin_target=admin_target, timeout_s=timeout_s)
        self._client = client
        self._is_closed = False
        self._loop = SHARED.acquire()
        self._closing = asyncio.Event()
        opened = concurrent.futures.Future[None]()
        self._host = self._loop.submit(self._keep_open(opened))
        try:
            opened.result()
        except BaseException:
            self.close()
            raise

    async def _keep_open(self, opened: "concurrent.futures.Future[None]") -> None:
        # One task opens and closes the client, as its task group demands.
        try:
            await self._client.__aenter__()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            await self._closing.wait()
        finally:
            await self._client.__aexit__(None, None, None)

    def close(self) -> None:
        """Cancels what runs and joins the background thread. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._loop.run(_set(self._closing))
            self._host.result()
        finally:
            SHARED.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, work: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
        """Runs any coroutine of the asynchronous client, e.g. ``client.call(lambda c: c.server_info())``."""
        if self._is_closed:
            raise RuntimeError("this client is closed")

        async def run() -> _T:
            return await work(self._client)

        return self._loop.run(run())

    # --- generation ---

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        adapter: AdapterChoice = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        **fields: Any,
    ) -> "SyncTokenStream":
        """The deltas of one request as they come; submitted at once. Closing the iterator cancels the request."""

        async def start(client: AsyncClient) -> TokenStream:
            return await client.stream(prompt, sampling, adapter=adapter, options=options, **fields).start()

        return SyncTokenStream(self, self.call(start))

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        adapter: AdapterChoice = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        **fields: Any,
    ) -> Output:
        """One request, the whole answer."""
        return self.call(lambda client: client.generate(prompt, sampling, adapter=adapter, options=options, **fields))

    def cancel(self, request_id: str) -> bool:
        """Ends a request by id. False if no such request runs."""
        return self.call(lambda client: client.cancel(request_id))

    # --- text and server ---

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of 1 to 64 texts."""
        return self.call(lambda client: client.tokenize(texts, add_special_tokens=add_special_tokens))

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.call(lambda client: client.detokenize(token_ids, skip_special_tokens=skip_special_tokens))

    def render_chat(self, chat: Chat) -> tuple[str, list[int]]:
        """The text that a conversation becomes, and its token ids."""
        return self.call(lambda client: client.render_chat(chat))

    def server_info(self) -> ServerInfo:
        """Version, bounds and number of ready workers."""
        return self.call(lambda client: client.server_info())

    def model(self, name: str = "") -> Model:
        """The base model."""
        return self.call(lambda client: client.model(name))

    def cluster(self) -> Cluster:
        """Workers and queue, from the admin address."""
        return self.call(lambda client: client.cluster())


class SyncTokenStream(Iterator[Delta]):
    """The deltas of one request. Use ``with`` or ``close`` to cancel it early; dropping it cancels too."""

    def __init__(self, client: Client, stream: TokenStream) -> None:
        self._client = client
        self._stream = stream

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def prompt(self) -> PromptInfo | None:
        """Known by the first delta."""
        return self._stream.prompt

    def __next__(self) -> Delta:
        delta = self._client.call(lambda _: self._stream.take())
        if delta is None:
            raise StopIteration
        return delta

    def close(self) -> None:
        """Cancels the request if it still runs. Idempotent."""
        self._client.call(lambda _: self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _set(event: asyncio.Event) -> None:
    event.set()
