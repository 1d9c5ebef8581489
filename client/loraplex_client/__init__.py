"""Python client of loraplex.

``AsyncClient`` for asyncio, ``Client`` for everything else, and ``LLM``, ``SamplingParams``, ``LoRARequest`` for
scripts written for vLLM.
"""

from loraplex_client.adapter import (
    Adapter,
    AdapterReport,
    AdapterState,
    AdapterVersion,
    AppliedModule,
    Residency,
)
from loraplex_client.adapter_changes import AdapterChanges
from loraplex_client.adapter_ref import AdapterRef, ResolvedAdapter, WeightedAdapter
from loraplex_client.adapter_upload import AdapterUpload, UploadedFile
from loraplex_client.async_client import AsyncClient
from loraplex_client.channel import DEFAULT_TARGET, Tls
from loraplex_client.client import Client, SyncTokenStream
from loraplex_client.cluster import Cluster, ResidentAdapter, Worker
from loraplex_client.delta import Delta, TokenLogprobs
from loraplex_client.finish import Finish, FinishReason, Timing, Usage
from loraplex_client.llm import LLM
from loraplex_client.lora_request import LoRARequest
from loraplex_client.output import Output, PromptInfo, SequenceOutput
from loraplex_client.prompt import Chat, ChatMessage
from loraplex_client.request_options import RequestOptions
from loraplex_client.request_output import CompletionOutput, Logprob, RequestOutput
from loraplex_client.sampling_params import SamplingParams
from loraplex_client.server_info import Limits, Model, ServerInfo
from loraplex_client.token_stream import TokenStream

__all__ = [
    "DEFAULT_TARGET",
    "LLM",
    "Adapter",
    "AdapterChanges",
    "AdapterRef",
    "AdapterReport",
    "AdapterState",
    "AdapterUpload",
    "AdapterVersion",
    "AppliedModule",
    "AsyncClient",
    "Chat",
    "ChatMessage",
    "Client",
    "Cluster",
    "CompletionOutput",
    "Delta",
    "Finish",
    "FinishReason",
    "Limits",
    "LoRARequest",
    "Logprob",
    "Model",
    "Output",
    "PromptInfo",
    "RequestOptions",
    "RequestOutput",
    "Residency",
    "ResidentAdapter",
    "ResolvedAdapter",
    "SamplingParams",
    "SequenceOutput",
    "ServerInfo",
    "SyncTokenStream",
    "Timing",
    "Tls",
    "TokenLogprobs",
    "TokenStream",
    "UploadedFile",
    "Usage",
    "WeightedAdapter",
    "Worker",
]
