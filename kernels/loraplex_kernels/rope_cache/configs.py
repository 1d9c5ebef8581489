"""Launch parameters of rotation and cache write. Chosen on paper; compiled in the tests; not yet timed on a chip."""

BLOCK_HEADS = 8
NUM_WARPS = 4
