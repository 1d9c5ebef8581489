"""What an operator may set for a worker, and why each default is what it is."""

import os
import socket
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_settings import CliImplicitFlag

from loraplex_contract.metrics_address import MetricsListen
from loraplex_contract.settings import ProcessSettings


def _host_and_pid() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class WorkerSettings(ProcessSettings):
    """One worker process: one model on one device."""

    process: ClassVar[str] = "worker"

    scheduler: str = "127.0.0.1:50052"
    """Address of the scheduler that this worker dials."""
    model: Path
    """Hugging Face folder of the base model: config.json and safetensors."""
    store: Path
    """Folder of the adapter store that the frontends write to."""
    worker_id: Annotated[str, Field(default_factory=_host_and_pid, min_length=1, max_length=128)]
    """Stable name of the worker. Default: host name and process id."""
    device: Literal["cpu"] = "cpu"
    """Where the model runs. This release has the CPU only."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What weights, adapters and KV are computed in. fp32 is for parity tests: twice the memory."""
    kv_pool_bytes: Annotated[int, Field(ge=1 << 16)] = 512 << 20
    """Size of the page pool for KV and adapters. 512 MiB: some 23,000 tokens of a 135M model in bf16."""
    page_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens of KV in a page."""
    max_sequences: Annotated[int, Field(ge=1, le=4096)] = 64
    """Live sequences, paused ones included."""
    max_step_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Rows of one step: what a decoding stream waits at most while others prefill. At least max_sequences."""
    max_context_tokens: Annotated[int | None, Field(ge=2)] = None
    """Prompt and output of one sequence. Default: what the model's positions allow."""
    host_cache_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Budget for adapters that are kept in memory off the page pool, ready to be attached again."""
    prefix_cache: CliImplicitFlag[bool] = True
    """Keep the KV of computed prompts and outputs while their pages are not needed, and let requests of the same tenant
    and the same adapters that begin alike start behind it."""
    num_loaders: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that read adapters from the store. Two: one slow read does not hold up the next."""
    load_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long a load may take where the scheduler does not say."""
    cpu_kernels: Literal["auto", "native", "torch"] = "auto"
    """native: the C++ kernels, compiled at the first start; torch: its operations alone; auto: native where there is a
    compiler and AVX2, else torch."""
    num_threads: Annotated[int | None, Field(ge=1, le=1024)] = None
    """Threads of a matrix product. Default: every core that this process may run on."""
    metrics_listen: MetricsListen = ""
    """Address of /metrics: plain HTTP, without credentials. Port 0: any free one, see --port-file. Empty: none."""
    port_file: Path | None = None
    """Written as JSON before the scheduler is dialled: the address of the metrics."""
    register_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """A scheduler that has not answered the registration by then is dialled again."""
    leave_timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """How long a stopping worker tries to say goodbye."""

    @model_validator(mode="after")
    def _every_sequence_fits_a_step(self) -> "WorkerSettings":
        if self.max_step_tokens < self.max_sequences:
            raise ValueError(
                f"max_step_tokens={self.max_step_tokens} is less than max_sequences={self.max_sequences}: "
                "a step has one row for each running sequence"
            )
        return self
