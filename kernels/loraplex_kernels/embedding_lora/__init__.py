"""LoRA of the embedding: a column of A, expanded. See README.md."""
