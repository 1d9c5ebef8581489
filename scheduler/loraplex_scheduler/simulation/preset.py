"""A machine with a model on it, as the simulator knows it."""

import dataclasses

from loraplex_scheduler.core.event import WorkerInfo
from loraplex_scheduler.simulation.cost_model import CostModel, LoadCost


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes and costs of one worker."""

    name: str
    step: CostModel
    load: LoadCost
    kv_token_bytes: int
    pool_bytes: int
    """Device memory for KV and adapters together."""
    parameters_per_rank: int
    """Of an adapter on all its projections."""
    page_size: int = 16
    max_sequences: int = 256
    max_step_tokens: int = 512
    max_context_tokens: int = 4096
    link_ns: int = 70_000
    """One way between scheduler and worker. 70 us is a gRPC message, client and server, on two cores (notes, 3.5)."""
    adapter_parameter_bytes: int = 2

    @property
    def page_bytes(self) -> int:
        return self.page_size * self.kv_token_bytes

    @property
    def num_pages(self) -> int:
        return self.pool_bytes // self.page_bytes

    def adapter_bytes(self, rank: int) -> int:
        return self.num_parameters(rank) * self.adapter_parameter_bytes

    def num_parameters(self, rank: int) -> int:
        return rank * self.parameters_per_rank

    def adapter_pages(self, rank: int) -> int:
        return max(1, -(-self.adapter_bytes(rank) // self.page_bytes))

    def with_pool(self, *, num_adapters: int, rank: int, num_kv_tokens: int) -> "Preset":
        """The same machine with room for so many adapters of a rank and so much KV."""
        num_pages = num_adapters * self.adapter_pages(rank) + -(-num_kv_tokens // self.page_size)
        return dataclasses.replace(self, pool_bytes=num_pages * self.page_bytes)

    def with_slots(self, num_sequences: int) -> "Preset":
        """The same machine with a smaller batch."""
        return dataclasses.replace(self, max_sequences=num_sequences)

    def worker_info(self, worker_id: str, epoch: int) -> WorkerInfo:
        return WorkerInfo(
            worker_id=worker_id,
            epoch=epoch,
            device="simulated",
            num_pages=self.num_pages,
            page_size=self.page_size,
            page_bytes=self.page_bytes,
            adapter_parameter_bytes=self.adapter_parameter_bytes,
            max_sequences=self.max_sequences,
            max_step_tokens=self.max_step_tokens,
            max_context_tokens=self.max_context_tokens,
            vocab_size=1 << 30,
        )
