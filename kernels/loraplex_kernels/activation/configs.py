"""Launch parameters of the activation. Chosen on paper; compiled in the tests; not yet timed on a chip."""

BLOCK_FEATURES = 1024
NUM_WARPS = 4
