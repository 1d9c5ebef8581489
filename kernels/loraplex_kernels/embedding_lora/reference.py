"""The specification: ``lora.reference.lora_embedding_rows``, whose A is [rank, vocab] and read by column."""

from loraplex_kernels.lora.reference import lora_embedding_rows

__all__ = ["lora_embedding_rows"]
