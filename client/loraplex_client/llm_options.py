"""Which keyword arguments of vLLM's ``LLM`` mean something here, which are harmless, and which are refused."""

from collections.abc import Mapping
from typing import Any, Final

from loraplex_contract.errors import Unsupported

HARMLESS: Final = frozenset(
    {
        # They size what loraplex sizes by itself, or tune speed alone: no answer depends on them.
        "block_size",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "fully_sharded_loras",
        "gpu_memory_utilization",
        "max_cpu_loras",
        "max_lora_rank",
        "max_loras",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "swap_space",
    }
)
ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "tokenizer": (None,),
    "tokenizer_mode": ("auto",),
    "skip_tokenizer_init": (False,),
    "trust_remote_code": (False,),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "quantization": (None,),
    "revision": (None,),
    "load_format": ("auto", "safetensors"),
    "runner": ("auto", "generate"),
    "task": (None, "auto", "generate"),
    "seed": (None, 0),
}
"""Known to vLLM and served only at these values."""
DTYPES: Final[Mapping[str, str]] = {"bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
"""vLLM's names of the dtypes that a worker serves, to the worker's own."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raises Unsupported, naming every argument that would change answers and cannot be honoured."""
    refused = [f"{name}={value!r}" for name, value in options.items() if not _is_allowed(name, value)]
    if refused:
        raise Unsupported(f"LLM: {', '.join(refused)}: not supported here; leave it out")


def worker_dtype(dtype: str) -> str | None:
    """The worker's ``--dtype``, or None for its default. Raises Unsupported."""
    if dtype == "auto":
        return None
    if dtype not in DTYPES:
        raise Unsupported(f"LLM: dtype={dtype!r} is not served here; one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _is_allowed(name: str, value: Any) -> bool:
    return name in HARMLESS or (name in ONLY and value in ONLY[name])
