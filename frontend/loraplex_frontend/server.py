"""Puts a frontend together, and takes it apart in order."""

import asyncio
import contextlib
import json
import os
import uuid
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loraplex.admin.v1 import cluster_pb2_grpc
from loraplex.v1 import adapter_pb2_grpc, inference_pb2_grpc, model_pb2_grpc, tokenizer_pb2_grpc
from loraplex.worker.v1 import frontend_link_pb2
from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.limits import Limits as AdapterLimits
from loraplex_adapters.store import AdapterStore
from loraplex_contract.channel import LINK_OPTIONS, MAX_MESSAGE_BYTES, SERVER_OPTIONS
from loraplex_contract.errors import Unavailable
from loraplex_contract.interceptor import ErrorInterceptor
from loraplex_contract.metrics import Family, MetricTable
from loraplex_contract.metrics_endpoint import metrics_served
from loraplex_frontend import health
from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.adapter_origins import AdapterOrigins
from loraplex_frontend.adapter_registration import AdapterRegistration
from loraplex_frontend.adapter_service import AdapterService
from loraplex_frontend.auth import AuthInterceptor
from loraplex_frontend.auth_keys import AuthKeys
from loraplex_frontend.cluster_service import ClusterService
from loraplex_frontend.inference_service import InferenceService
from loraplex_frontend.metrics import SPECS
from loraplex_frontend.model_folder import ModelFolder
from loraplex_frontend.model_service import ModelService
from loraplex_frontend.open_calls import OpenCalls
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.request_metrics import RequestMetrics
from loraplex_frontend.rpc_metrics import RpcMetrics
from loraplex_frontend.scheduler_link import PROTOCOL_VERSION, SchedulerLink
from loraplex_frontend.session_settings import SessionSettings
from loraplex_frontend.settings import FrontendSettings
from loraplex_frontend.sources.remote_sources import RemoteSources
from loraplex_frontend.store_sweeper import StoreSweeper
from loraplex_frontend.submission import Submission
from loraplex_frontend.text.chat_template import ChatTemplate
from loraplex_frontend.text.tokenizer import Tokenizer
from loraplex_frontend.tokenizer_service import TokenizerService
from loraplex_frontend.uploads.upload_store import CONFIG_NAME, WEIGHTS_NAME, UploadLimits, UploadStore

_log = structlog.get_logger(__name__)
_CANCEL_GRACE_S: Final = 2.0
_CLOSE_GRACE_S: Final = 1.0


class Frontend:
    """One frontend process: ``run`` serves until ``stop`` is called, then shuts down in order."""

    def __init__(self, settings: FrontendSettings) -> None:
        """Reads the model's files. Raises ModelFolderError, AuthKeysError, DecoderUnsupported, LoraplexError."""
        self._settings = settings
        self._model = ModelFolder.read(settings.model, name=settings.model_name)
        self._keys = AuthKeys.read(settings.auth_keys_file) if settings.auth_keys_file else None
        self._base = BaseShape.from_folder(settings.model)
        self._frontend_id = settings.frontend_id or f"frontend-{uuid.uuid4().hex[:8]}"
        self._stopping = asyncio.Event()
        self._cluster_changed = asyncio.Event()
        self._health = health.Health()
        self._calls = OpenCalls()
        self._metrics = MetricTable(SPECS)
        self._requests = RequestMetrics(self._metrics, max_adapters=settings.metrics_max_adapters)
        self.ports: dict[str, str] = {}
        """Bound addresses, once ``is_listening``."""
        self.is_listening = asyncio.Event()

    def stop(self) -> None:
        """Asks ``run`` to end; safe to call twice."""
        self._stopping.set()

    @property
    def num_open_requests(self) -> int:
        """Requests that run or are on their way to the scheduler."""
        return self._submission.num_open

    async def run(self) -> None:
        """Serves. Raises OSError or RuntimeError if an address cannot be bound."""
        self._build()
        public, admin = self._servers()
        self._bind(public, admin)
        settings = self._settings
        with metrics_served(
            settings.metrics_listen, self._collect, process="frontend", name=self._frontend_id
        ) as self.ports["metrics"]:
            await self._serve(public, admin)
        await self._channel.close()
        self._tokenizer.close()
        self._ingest.close()
        self._uploads.close()
        self._remote.close()
        _log.info("frontend stopped", frontend_id=self._frontend_id)

    async def _serve(self, public: Any, admin: Any) -> None:
        await self._health.start()
        await public.start()
        await admin.start()
        self.is_listening.set()
        self._write_port_file()
        _log.info("frontend listening", frontend_id=self._frontend_id, model=self._model.name, **self.ports)
        async with asyncio.TaskGroup() as tasks:
            link = tasks.create_task(self._link.run(), name="link")
            watch = tasks.create_task(self._watch_cluster(), name="health")
            sweep = tasks.create_task(self._sweeper.run(), name="sweeper")
            try:
                await self._stopping.wait()
            finally:
                await self._shut_down(public, admin)
                link.cancel()
                watch.cancel()
                sweep.cancel()

    def _collect(self) -> list[Family]:
        number = self._metrics.number
        number("loraplex_open_requests").set(self._submission.num_preparing, "preparing")
        number("loraplex_open_requests").set(self._link.num_open, "submitted")
        number("loraplex_streams").set(len(self._calls))
        number("loraplex_link_up").set(self._link.is_up)
        number("loraplex_link_losses_total").follow(self._link.num_losses)
        number("loraplex_ready_workers").set(self._link.cluster.num_ready_workers)
        return self._metrics.collect()

    # --- assembly ---

    def _build(self) -> None:
        settings = self._settings
        self._channel = grpc.aio.insecure_channel(settings.scheduler, options=LINK_OPTIONS)
        self._link = SchedulerLink(self._channel, hello=self._hello(), on_change=self._cluster_changed.set)
        self._registry = RegistryClient(self._channel)
        self._tokenizer = Tokenizer(
            self._model.tokenizer_json,
            vocab_size=self._model.vocab_size,
            num_threads=settings.tokenizer_threads,
        )
        self._template = ChatTemplate(
            self._model.chat_template,
            special_tokens=self._model.special_tokens,
            tokenizer=self._tokenizer,
            max_output_chars=2 * settings.max_prompt_bytes,
        )
        limits = AdapterLimits(max_file_bytes=settings.max_adapter_bytes, max_rank=settings.max_adapter_rank)
        store = AdapterStore(settings.store)
        self._ingest = AdapterIngest(base=self._base, store=store, roots=settings.adapter_roots, limits=limits)
        self._uploads = UploadStore(settings.store / ".uploads", self._upload_limits(limits))
        self._remote = RemoteSources(settings.store / ".fetches", settings.remote_sources(limits))
        self._sweeper = StoreSweeper(
            ingest=self._ingest, registry=self._registry, uploads=self._uploads, remote=self._remote
        )
        self._registration = AdapterRegistration(
            ingest=self._ingest,
            origins=AdapterOrigins(ingest=self._ingest, uploads=self._uploads, remote=self._remote),
            registry=self._registry,
            sweeper=self._sweeper,
            allow_request_uri=settings.allow_request_uri,
        )
        self._submission = Submission(
            model=self._model,
            tokenizer=self._tokenizer,
            template=self._template,
            link=self._link,
            sources=self._registration,
            grace_s=settings.scheduler_grace_s,
            max_open=settings.max_open_requests,
            max_prompt_bytes=settings.max_prompt_bytes,
            max_timeout_s=settings.max_timeout_s,
            metrics=self._requests if settings.metrics_listen else None,
        )

    def _upload_limits(self, limits: AdapterLimits) -> UploadLimits:
        return UploadLimits(
            max_file_bytes={CONFIG_NAME: limits.max_config_bytes, WEIGHTS_NAME: limits.max_file_bytes},
            max_total_bytes=self._settings.max_upload_bytes,
            ttl_s=self._settings.upload_ttl_s,
        )

    def _hello(self) -> frontend_link_pb2.Hello:
        return frontend_link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            frontend_id=self._frontend_id,
            incarnation=uuid.uuid4().hex,
            model_fingerprint=self._model.fingerprint,
        )

    def _servers(self) -> tuple[grpc.aio.Server, grpc.aio.Server]:
        counting = (RpcMetrics(self._metrics),) if self._settings.metrics_listen else ()
        interceptors = (ErrorInterceptor(), *counting, AuthInterceptor(self._keys))
        public = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        admin = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        self._add_public_services(public)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterService(registry=self._registry), admin)
        for server, names in ((public, health.SERVICES), (admin, health.ADMIN_SERVICES)):
            health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
            if self._settings.reflection:
                described = (*names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
                reflection.enable_server_reflection(described, server)
        return public, admin

    def _add_public_services(self, server: Any) -> None:
        settings = self._settings
        inference = InferenceService(
            submission=self._submission,
            link=self._link,
            calls=self._calls,
            sessions=SessionSettings(
                max_in_flight=settings.max_in_flight,
                heartbeat_s=settings.heartbeat_s,
                max_stream_bytes=settings.max_stream_bytes,
            ),
            # Ids cost up to three times as much on the wire as in memory here.
            max_response_bytes=MAX_MESSAGE_BYTES // 4,
            grace_s=settings.scheduler_grace_s,
        )
        adapters = AdapterService(registration=self._registration, registry=self._registry, uploads=self._uploads)
        models = ModelService(
            model=self._model,
            has_chat_template=self._template.is_usable,
            submission=self._submission,
            link=self._link,
            adapter_limits=self._ingest.limits,
            instance_id=self._frontend_id,
            max_in_flight=settings.max_in_flight,
        )
        tokenizers = TokenizerService(tokenizer=self._tokenizer, submission=self._submission)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(tokenizers, server)

    def _bind(self, public: Any, admin: Any) -> None:
        for name, server in (("listen", public), ("admin_listen", admin)):
            address = getattr(self._settings, name)
            port = server.add_insecure_port(address)
            self.ports[name] = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def _write_port_file(self) -> None:
        path = self._settings.port_file
        if path is not None:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps({name: address for name, address in self.ports.items() if address}))
            temporary.replace(path)

    async def _watch_cluster(self) -> None:
        """Health follows the link."""
        while True:
            await self._cluster_changed.wait()
            self._cluster_changed.clear()
            await self._health.set_ready(self._link.is_up and self._link.cluster.num_ready_workers > 0)

    # --- shutdown ---

    async def _shut_down(self, public: Any, admin: Any) -> None:
        """NOT_SERVING, GoAway, wait, cancel, close."""
        grace_s = self._settings.drain_grace_s
        _log.info("frontend draining", num_calls=len(self._calls), grace_s=grace_s)
        await self._health.stop()
        self._submission.is_draining = True
        self._calls.go_away(grace_s)
        if not await self._calls.wait_until_empty(grace_s):
            message = "this server is shutting down and the request was not done in time: submit it elsewhere"
            self._calls.fail(Unavailable(message, reason="DRAINING", retry_delay_s=1.0))
            await self._calls.wait_until_empty(_CANCEL_GRACE_S)
        await self._link.close()
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(admin.stop, _CLOSE_GRACE_S)
            closing.push_async_callback(public.stop, _CLOSE_GRACE_S)
