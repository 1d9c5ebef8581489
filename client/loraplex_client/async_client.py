"""The client for asyncio programs."""

import dataclasses
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.v1 import (
    adapter_pb2_grpc,
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from loraplex_client.adapter_ref import AdapterChoice
from loraplex_client.async_adapters import AsyncAdapters
from loraplex_client.channel import DEFAULT_TARGET, Tls, bearer, open_channel
from loraplex_client.cluster import Cluster
from loraplex_client.convert import request as to_request
from loraplex_client.convert import server as from_server
from loraplex_client.output import Output
from loraplex_client.prompt import Chat, Prompt
from loraplex_client.request_options import DEFAULT_OPTIONS, RequestOptions
from loraplex_client.rpc_errors import errors_of
from loraplex_client.sampling_params import SamplingParams, chosen_sampling
from loraplex_client.server_info import Model, ServerInfo
from loraplex_client.session_pool import SessionPool
from loraplex_client.token_stream import TokenStream
from loraplex_contract.errors import FailedPrecondition, NotFound


class AsyncClient(AsyncAdapters):
    """Everything a server offers, on one channel and one session.

    Use it as ``async with AsyncClient(target) as client``, on one event loop. gRPC does badly with several event loops
    in one process, so do not use it beside ``Client``.

    Args:
        target: ``host:port`` of a frontend.
        token: bearer token, if the server wants one.
        tls: None = plain text.
        admin_target: the frontend's admin address, for ``cluster``.
        timeout_s: of the short calls; generation has none but what its options say.

    All methods raise ``loraplex_contract.errors.LoraplexError``: e.g. NotFound, InvalidArgument, Unavailable.
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
        self._admin_target = admin_target
        self._metadata = bearer(token)
        self._tls = tls
        self._timeout_s = timeout_s
        self._channels: list[grpc.aio.Channel] = []
        self._sessions: SessionPool | None = None

    async def __aenter__(self) -> Self:
        channel = self._channel(self.target)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
        self._models = model_pb2_grpc.ModelServiceStub(channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self._inference = stub
        self._sessions = SessionPool(stub, self.target, self._metadata)
        await self._sessions.open()
        if self._admin_target is not None:
            self._clusters = cluster_pb2_grpc.ClusterServiceStub(self._channel(self._admin_target))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sessions, self._sessions = self._sessions, None
        assert sessions is not None
        try:
            await sessions.close()
        finally:
            for channel in self._channels:
                await channel.close()
            self._channels.clear()

    # --- generation ---

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        adapter: AdapterChoice = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        **fields: Any,
    ) -> TokenStream:
        """The deltas of one request as they come. Closing the stream early cancels the request.

        Args:
            prompt: text, token ids, ``[{"role": ..., "content": ...}]``, or a Chat.
            sampling: None = ``SamplingParams()``, which stops after 16 tokens as vLLM does.
            adapter: a name, ``name@version``, AdapterRef, composition; None = the base model.
            fields: of ``SamplingParams``, in place of it: ``max_tokens=32``.
        """
        sampling = chosen_sampling(sampling, fields)
        options = options if options.request_id else dataclasses.replace(options, request_id=uuid.uuid4().hex)
        request = to_request.submit_request(prompt, sampling, adapter, options)
        sessions = self._open_sessions()
        return TokenStream(options.request_id, sampling.n, lambda: sessions.submit(request))

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        adapter: AdapterChoice = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        **fields: Any,
    ) -> Output:
        """One request, the whole answer. Cancelling the call cancels the request."""
        async with self.stream(prompt, sampling, adapter=adapter, options=options, **fields) as stream:
            return await stream.collect()

    async def cancel(self, request_id: str) -> bool:
        """Ends a request by id, whoever submitted it. False if no such request runs."""
        request = inference_pb2.CancelRequest(request_ids=[request_id])
        try:
            response = await self._call(self._inference.Cancel, request)
        except NotFound:
            return False
        return bool(response.results[0].outcome == inference_pb2.CANCEL_OUTCOME_CANCELLED)

    # --- text ---

    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of 1 to 64 texts, as generation sees them."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        request = tokenizer_pb2.TokenizeRequest(texts=texts, add_special_tokens=add_special_tokens)
        response = await self._call(self._tokenizer.Tokenize, request)
        return [list(result.token_ids) for result in response.results]

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        tokens = generation_pb2.TokenIds(ids_le32=to_request.packed_ids("token_ids", token_ids))
        request = tokenizer_pb2.DetokenizeRequest(tokens=tokens, skip_special_tokens=skip_special_tokens)
        return str((await self._call(self._tokenizer.Detokenize, request)).text)

    async def render_chat(self, chat: Chat) -> tuple[str, list[int]]:
        """The text that a conversation becomes, and its token ids."""
        request = tokenizer_pb2.RenderChatRequest(chat=to_request.chat_to_pb(chat))
        response = await self._call(self._tokenizer.RenderChat, request)
        return response.text, list(response.token_ids)

    # --- the server ---

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Version, bounds and number of ready workers."""
        request = model_pb2.GetServerInfoRequest()
        return from_server.server_info(await self._call(self._models.GetServerInfo, request, timeout_s))

    async def model(self, name: str = "") -> Model:
        """The base model. Raises NotFound for a name that is not served."""
        response = await self._call(self._models.GetModel, model_pb2.GetModelRequest(name=name))
        return from_server.model(response.model)

    async def cluster(self) -> Cluster:
        """Workers and queue, from the admin address."""
        if self._admin_target is None:
            message = "cluster() needs the frontend's admin address: give admin_target to the client"
            raise FailedPrecondition(message, reason="NO_ADMIN_TARGET")
        request = cluster_pb2.GetClusterRequest()
        with errors_of(self._admin_target):
            call = self._clusters.GetCluster(request, metadata=self._metadata, timeout=self._timeout_s)
            return from_server.cluster(await call)

    # --- inside ---

    def _channel(self, target: str) -> grpc.aio.Channel:
        channel = open_channel(target, self._tls)
        self._channels.append(channel)
        return channel

    def _open_sessions(self) -> SessionPool:
        if self._sessions is None:
            raise RuntimeError("this client is not open: use it inside `async with`")
        return self._sessions

    async def _call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        self._open_sessions()
        with errors_of(self.target):
            return await method(request, metadata=self._metadata, timeout=timeout_s or self._timeout_s)
