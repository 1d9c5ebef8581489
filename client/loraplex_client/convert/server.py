"""Server, model and cluster facts from their messages."""

from loraplex.admin.v1 import cluster_pb2
from loraplex.v1 import model_pb2
from loraplex_client.cluster import Cluster, ResidentAdapter, Worker
from loraplex_client.convert.duration import seconds
from loraplex_client.server_info import Limits, Model, ServerInfo


def server_info(pb: model_pb2.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        server_version=pb.server_version,
        instance_id=pb.instance_id,
        api_versions=tuple(pb.api_versions),
        limits=_limits(pb.limits),
        num_ready_workers=pb.num_ready_workers,
    )


def _limits(pb: model_pb2.Limits) -> Limits:
    return Limits(
        max_context_tokens=pb.max_context_tokens,
        max_prompt_bytes=pb.max_prompt_bytes,
        max_sequences_per_request=pb.max_sequences_per_request,
        max_top_logprobs=pb.max_top_logprobs,
        max_stop_strings=pb.max_stop_strings,
        max_stop_string_bytes=pb.max_stop_string_bytes,
        max_requests_per_session=pb.max_requests_per_session,
        max_composition=pb.max_composition,
        max_adapter_rank=pb.max_adapter_rank,
        max_adapter_bytes=pb.max_adapter_bytes,
        max_message_bytes=pb.max_message_bytes,
        max_timeout_s=seconds(pb.max_timeout),
    )


def model(pb: model_pb2.Model) -> Model:
    return Model(
        name=pb.name,
        architecture=pb.architecture,
        vocab_size=pb.vocab_size,
        num_layers=pb.num_layers,
        hidden_size=pb.hidden_size,
        max_context_tokens=pb.max_context_tokens,
        eos_token_ids=tuple(pb.eos_token_ids),
        bos_token_id=pb.bos_token_id if pb.HasField("bos_token_id") else None,
        has_chat_template=pb.has_chat_template,
        lora_target_modules=tuple(pb.lora_target_modules),
    )


def cluster(pb: cluster_pb2.GetClusterResponse) -> Cluster:
    return Cluster(
        workers=tuple(_worker(worker) for worker in pb.workers),
        num_queued_requests=pb.num_queued_requests,
        num_running_requests=pb.num_running_requests,
        epoch=pb.epoch,
    )


def _worker(pb: cluster_pb2.Worker) -> Worker:
    return Worker(
        worker_id=pb.worker_id,
        device=pb.device,
        num_pages_total=pb.num_pages_total,
        num_pages_free=pb.num_pages_free,
        num_pages_kv=pb.num_pages_kv,
        num_pages_adapter=pb.num_pages_adapter,
        num_running_sequences=pb.num_running_sequences,
        adapters=tuple(
            ResidentAdapter(digest=entry.digest, num_pages=entry.num_pages, num_leases=entry.num_leases)
            for entry in pb.adapters
        ),
        num_steps=pb.num_steps,
        num_mixed_steps=pb.num_mixed_steps,
        max_adapters_in_step=pb.max_adapters_in_step,
        num_output_tokens=pb.num_output_tokens,
    )
