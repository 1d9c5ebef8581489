"""``loraplex.v1.ModelService``: what this server is and what it serves."""

import importlib.metadata
from typing import Any

from loraplex.v1 import model_pb2, model_pb2_grpc
from loraplex_adapters.limits import Limits as AdapterLimits
from loraplex_adapters.module import Module
from loraplex_contract.channel import MAX_MESSAGE_BYTES
from loraplex_frontend import convert, request_limits
from loraplex_frontend.model_folder import ModelFolder
from loraplex_frontend.scheduler_link import SchedulerLink
from loraplex_frontend.submission import Submission
from loraplex_frontend.validate import check_model


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Answers from what was read at start, and the bounds that the workers set."""

    def __init__(
        self,
        *,
        model: ModelFolder,
        has_chat_template: bool,
        submission: Submission,
        link: SchedulerLink,
        adapter_limits: AdapterLimits,
        instance_id: str,
        max_in_flight: int,
    ) -> None:
        self._model = model
        self._has_chat_template = has_chat_template
        self._submission = submission
        self._link = link
        self._adapter_limits = adapter_limits
        self._instance_id = instance_id
        self._max_in_flight = max_in_flight

    async def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Any
    ) -> model_pb2.GetServerInfoResponse:
        return model_pb2.GetServerInfoResponse(
            server_version=importlib.metadata.version("loraplex"),
            instance_id=self._instance_id,
            api_versions=["v1"],
            limits=self._limits(),
            num_ready_workers=self._link.cluster.num_ready_workers,
        )

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        check_model(request.name, self._model.name)
        return model_pb2.GetModelResponse(model=self._model_pb())

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=[self._model_pb()])

    def _model_pb(self) -> model_pb2.Model:
        return model_pb2.Model(
            name=self._model.name,
            architecture=self._model.architecture,
            vocab_size=self._model.vocab_size,
            num_layers=self._model.num_layers,
            hidden_size=self._model.hidden_size,
            max_context_tokens=self._submission.max_context_tokens,
            eos_token_ids=self._model.eos_token_ids,
            bos_token_id=self._model.bos_token_id,
            has_chat_template=self._has_chat_template,
            lora_target_modules=[module.value for module in Module],
        )

    def _limits(self) -> model_pb2.Limits:
        limits = self._submission.limits()
        return model_pb2.Limits(
            max_context_tokens=limits.max_context_tokens,
            max_prompt_bytes=limits.max_prompt_bytes,
            max_sequences_per_request=request_limits.MAX_SEQUENCES,
            max_top_logprobs=request_limits.MAX_TOP_LOGPROBS,
            max_stop_strings=request_limits.MAX_STOP_STRINGS,
            max_stop_string_bytes=request_limits.MAX_STOP_STRING_BYTES,
            max_requests_per_session=self._max_in_flight,
            max_composition=request_limits.MAX_COMPOSITION,
            max_adapter_rank=self._adapter_limits.max_rank,
            max_adapter_bytes=self._adapter_limits.max_file_bytes,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_timeout=convert.duration(limits.max_timeout_s),
        )
