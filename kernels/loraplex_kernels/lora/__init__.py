"""Grouped LoRA: many adapters of mixed rank over the rows of one batch. The mathematics is in README.md."""
