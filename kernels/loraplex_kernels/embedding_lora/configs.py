"""Launch parameters of the embedding's LoRA. Chosen on paper; compiled in the tests; not yet timed on a chip."""

MIN_BLOCK_M = 16
"""Rows of a product; a plan may have smaller tiles."""
BLOCK_R = 16
BLOCK_N = 128
NUM_WARPS = 4
PROGRAMS_PER_SM = 4
