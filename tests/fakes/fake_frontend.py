"""A frontend without a model: real gRPC, answers that the prompt itself asks for.

What a prompt asks for is at the top of ``scripted_answer.py``.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import signal
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from loraplex_contract import errors, status, token_bytes
from loraplex_contract.channel import SERVER_OPTIONS
from loraplex_contract.interceptor import ErrorInterceptor
from tests.fakes.scripted_answer import MODEL, chat_text, deltas, prompt_info

LOOPBACK = "127.0.0.1:0"


@dataclasses.dataclass(kw_only=True)
class Script:
    """How the whole server behaves; a test may change it while the server runs."""

    heartbeat_s: float = 1.0
    sends_heartbeats: bool = True
    opens_sessions: bool = True
    max_in_flight: int = 64
    go_away_after: int = 0
    """Submits after which the session says GoAway. 0 = never."""
    token: str | None = None
    """The bearer token that is wanted."""
    num_ready_workers: int = 1
    max_adapters_in_step: int = 3


class FakeFrontend:
    """``async with FakeFrontend() as server``; ``server.address``, ``server.admin_address``."""

    def __init__(self, script: Script | None = None, listen: str = LOOPBACK, admin_listen: str = LOOPBACK) -> None:
        self.script = script or Script()
        self._listen = listen
        self._admin_listen = admin_listen
        self.submitted: list[generation_pb2.SubmitRequest] = []
        self.cancelled: list[str] = []
        self.credits: list[int] = []
        self.registered: list[adapter_pb2.RegisterAdapterRequest] = []
        self.adapters: dict[str, adapter_pb2.Adapter] = {}
        self.running: dict[str, asyncio.Event] = {}
        self.num_sessions = 0
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> "FakeFrontend":
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
        self._admin = grpc.aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_new(_Inference, self), self._server)
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(_new(_Adapters, self), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(_new(_Models, self), self._server)
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(_new(_Tokenizer), self._server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_new(_Cluster, self), self._admin)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(self._listen)}"
        self.admin_address = f"127.0.0.1:{self._admin.add_insecure_port(self._admin_listen)}"
        await self._server.start()
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        await self._admin.stop(None)

    async def stop(self) -> None:
        await self._server.stop(None)

    async def until(self, question: Any, timeout_s: float = 5.0) -> None:
        """Waits until ``question()`` is true."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(question)

    async def note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def check_token(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get("authorization")
        if self.script.token is not None and given != f"Bearer {self.script.token}":
            raise errors.Unauthenticated("give a bearer token")

    def resolve(self, request: generation_pb2.SubmitRequest) -> list[adapter_pb2.Adapter]:
        if not request.HasField("adapter"):
            return []
        names = [part.name for part in request.adapter.composition] or [request.adapter.name]
        for name in names:
            if name not in self.adapters:
                raise errors.NotFound(f"no adapter {name!r}", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
        return [self.adapters[name] for name in names]


def _new(servicer: Any, *arguments: Any) -> Any:
    """Methods that a fake leaves out answer UNIMPLEMENTED, whatever the stubs say about abstract ones."""
    return servicer(*arguments)


# --- generation ---


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, server: FakeFrontend) -> None:
        self._server = server

    async def Submit(self, request: Any, context: Any) -> Any:
        self._server.check_token(context)
        info = prompt_info(request, self._server.resolve(request))
        answer = [delta async for delta in deltas(request, 0)]
        outputs = [
            inference_pb2.SequenceOutput(
                index=index,
                text="".join(delta.text for delta in answer if delta.index == index),
                token_ids=[token for delta in answer if delta.index == index for token in delta.token_ids],
            )
            for index in range(max(1, request.sampling.n))
        ]
        return inference_pb2.SubmitResponse(request_id=request.request_id, prompt=info, outputs=outputs)

    async def Session(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        self._server.check_token(context)
        await _SessionRun(self._server, context).run(requests)

    async def Cancel(self, request: Any, context: Any) -> Any:
        response = inference_pb2.CancelResponse()
        for request_id in request.request_ids:
            event = self._server.running.get(request_id)
            if event is None:
                raise errors.NotFound("no such request", reason="REQUEST_NOT_FOUND")
            event.set()
            response.results.add(request_id=request_id, outcome=inference_pb2.CANCEL_OUTCOME_CANCELLED)
        return response


class _SessionRun:
    """One session: a reader, a writer, and a task for each request."""

    def __init__(self, server: FakeFrontend, context: Any) -> None:
        self._server = server
        self._script = server.script
        self._context = context
        self._outbox: asyncio.Queue[session_pb2.SessionResponse | None] = asyncio.Queue()
        self._open: dict[int, asyncio.Event] = {}
        self._num_submitted = 0

    async def run(self, requests: AsyncIterator[session_pb2.SessionRequest]) -> None:
        first = await anext(requests)
        if first.WhichOneof("frame") != "open":
            raise errors.InvalidArgument("open first", reason="PROTOCOL_VIOLATION")
        self._server.num_sessions += 1
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write())
            pulse = tasks.create_task(self._pulse())
            if self._script.opens_sessions:
                opened = session_pb2.SessionOpened(max_in_flight=self._script.max_in_flight)
                opened.heartbeat.FromNanoseconds(int(self._script.heartbeat_s * 1e9))
                self._send(opened=opened)
            async with asyncio.TaskGroup() as generations:
                async for frame in requests:
                    await self._take(frame, generations)
            pulse.cancel()
            self._outbox.put_nowait(None)
            await writer

    def _send(self, **frame: Any) -> None:
        self._outbox.put_nowait(session_pb2.SessionResponse(**frame))

    async def _write(self) -> None:
        while (frame := await self._outbox.get()) is not None:
            await self._context.write(frame)

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(self._script.heartbeat_s)
            if self._script.sends_heartbeats:
                self._send(heartbeat=session_pb2.Heartbeat(num_open=len(self._open)))

    async def _take(self, frame: session_pb2.SessionRequest, tasks: asyncio.TaskGroup) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "submit":
            self._submit(frame.submit, tasks)
        elif kind == "cancel":
            for handle in frame.cancel.handles:
                if handle in self._open:
                    self._open[handle].set()
        elif kind == "credit":
            self._server.credits.append(frame.credit.num_tokens)
        await self._server.note()

    def _submit(self, submit: session_pb2.SessionSubmit, tasks: asyncio.TaskGroup) -> None:
        request = submit.request
        self._server.submitted.append(request)
        try:
            if len(self._open) >= self._script.max_in_flight:
                raise errors.ResourceExhausted("too many at once", reason="SESSION_FULL")
            info = prompt_info(request, self._server.resolve(request))
        except errors.LoraplexError as error:
            self._send(
                rejected=session_pb2.SessionRejected(
                    handle=submit.handle, request_id=request.request_id, error=status.error_to_pb(error)
                )
            )
            return
        self._num_submitted += 1
        accepted = generation_pb2.Accepted(request_id=request.request_id)
        self._send(accepted=session_pb2.SessionAccepted(handle=submit.handle, accepted=accepted))
        self._send(started=session_pb2.SessionStarted(handle=submit.handle, prompt=info))
        self._open[submit.handle] = self._server.running[request.request_id] = asyncio.Event()
        tasks.create_task(self._generate(submit))
        if self._num_submitted == self._script.go_away_after:
            self._send(go_away=session_pb2.GoAway())

    async def _generate(self, submit: session_pb2.SessionSubmit) -> None:
        try:
            async for delta in deltas(submit.request, submit.handle, self._open[submit.handle]):
                self._send(tokens=session_pb2.TokenBatch(deltas=[delta]))
                if delta.finish.reason == generation_pb2.FINISH_REASON_CANCELLED:
                    self._server.cancelled.append(submit.request.request_id)
        finally:
            del self._open[submit.handle]
            self._server.running.pop(submit.request.request_id, None)
            await self._server.note()


# --- everything else ---


class _Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    async def Tokenize(self, request: Any, context: Any) -> Any:
        if not 1 <= len(request.texts) <= 64:
            raise errors.field_error("texts", f"{len(request.texts)} texts; 1 to 64")
        results = [tokenizer_pb2.TokenizedText(token_ids=text.encode()) for text in request.texts]
        return tokenizer_pb2.TokenizeResponse(results=results)

    async def Detokenize(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.DetokenizeResponse(text=bytes(list(token_bytes.unpack(request.tokens.ids_le32))).decode())

    async def RenderChat(self, request: Any, context: Any) -> Any:
        text = chat_text(request.chat)
        return tokenizer_pb2.RenderChatResponse(text=text, token_ids=text.encode())


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: FakeFrontend) -> None:
        self._server = server

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        limits = model_pb2.Limits(max_context_tokens=2048, max_requests_per_session=self._server.script.max_in_flight)
        return model_pb2.GetServerInfoResponse(
            server_version="0.1.0",
            instance_id="fake",
            api_versions=["v1"],
            limits=limits,
            num_ready_workers=self._server.script.num_ready_workers,
        )

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name not in ("", MODEL):
            raise errors.NotFound(f"model {request.name!r} is not served", reason="MODEL_NOT_FOUND")
        return model_pb2.GetModelResponse(model=model_pb2.Model(name=MODEL, vocab_size=256, has_chat_template=True))


class _Adapters(adapter_pb2_grpc.AdapterServiceServicer):
    def __init__(self, server: FakeFrontend) -> None:
        self._server = server

    async def RegisterAdapter(self, request: Any, context: Any) -> Any:
        self._server.check_token(context)
        self._server.registered.append(request)
        digest = _digest_of(request.uri)
        known = self._server.adapters.get(request.name)
        if known is not None and known.version.digest != digest and not request.allow_update:
            raise errors.AlreadyExists(f"{request.name} has other bytes", reason="ADAPTER_EXISTS")
        adapter = _adapter(request.name, digest, 1 if known is None else known.version.number + 1)
        if not request.validate_only and (known is None or known.version.digest != digest):
            self._server.adapters[request.name] = adapter
        return adapter_pb2.RegisterAdapterResponse(adapter=adapter)

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.GetAdapterResponse(adapter=self._find(request.name))

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        names = sorted(name for name in self._server.adapters if name.startswith(request.name_prefix))
        start = int(request.page_token or 0)
        end = start + (request.page_size or 50)
        page = [self._server.adapters[name] for name in names[start:end]]
        return adapter_pb2.ListAdaptersResponse(adapters=page, next_page_token=str(end) if end < len(names) else "")

    async def UnregisterAdapter(self, request: Any, context: Any) -> Any:
        adapter = self._find(request.name)
        del self._server.adapters[request.name]
        adapter.state = adapter_pb2.ADAPTER_STATE_DELETED
        return adapter_pb2.UnregisterAdapterResponse(adapter=adapter)

    def _find(self, name: str) -> Any:
        if name not in self._server.adapters:
            raise errors.NotFound(f"no adapter {name!r}", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
        return self._server.adapters[name]


def _digest_of(uri: str) -> str:
    folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path))
    if not folder.is_dir():
        raise errors.NotFound(f"no folder at {uri}", reason="SOURCE_NOT_FOUND")
    parts = [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256(b"".join([folder.name.encode(), *parts])).hexdigest()


def _adapter(name: str, digest: str, number: int) -> adapter_pb2.Adapter:
    report = adapter_pb2.AdapterReport(kind="lora", max_rank=8, dtype="BF16", num_bytes=4096, notes=["a note"])
    report.modules.add(module="layers.0.q_proj", rank=8, scale=2.0, dtype="BF16", num_bytes=4096)
    version = adapter_pb2.AdapterVersion(number=number, digest=digest, report=report)
    return adapter_pb2.Adapter(name=name, state=adapter_pb2.ADAPTER_STATE_READY, version=version)


class _Cluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, server: FakeFrontend) -> None:
        self._server = server

    async def GetCluster(self, request: Any, context: Any) -> Any:
        worker = cluster_pb2.Worker(
            worker_id="worker-0",
            device="cpu",
            num_steps=40,
            num_mixed_steps=30,
            max_adapters_in_step=self._server.script.max_adapters_in_step,
            num_output_tokens=120,
        )
        return cluster_pb2.GetClusterResponse(workers=[worker], epoch=1)


async def _serve(server: FakeFrontend, port_file: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with server:
        ports = {"listen": server.address, "admin_listen": server.admin_address}
        staging = port_file.with_suffix(".tmp")
        staging.write_text(json.dumps(ports))
        staging.rename(port_file)
        await stopped.wait()


def main() -> None:
    """``python -m tests.fakes.fake_frontend --port-file PATH``: serves until SIGTERM; other flags are ignored."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--listen", default=LOOPBACK)
    parser.add_argument("--admin-listen", default=LOOPBACK)
    parser.add_argument("--max-adapters-in-step", type=int, default=3)
    parser.add_argument("--num-ready-workers", type=int, default=1)
    known, _ = parser.parse_known_args()
    script = Script(max_adapters_in_step=known.max_adapters_in_step, num_ready_workers=known.num_ready_workers)
    server = FakeFrontend(script, known.listen, known.admin_listen)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, known.port_file))


if __name__ == "__main__":
    main()
