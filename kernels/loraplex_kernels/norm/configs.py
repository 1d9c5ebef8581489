"""Launch parameters of the norms: data by width. Chosen on paper; compiled in the tests; not yet timed on a chip."""

MAX_WIDTH = 32768
"""Features of a row: a program holds all of them in registers."""
BLOCK_HEADS = 4
HEADS_NUM_WARPS = 4
_NUM_WARPS = ((1024, 4), (8192, 8), (MAX_WIDTH, 16))


def num_warps(block: int) -> int:
    """Of a program that holds ``block`` features: 8 to 64 for each thread."""
    return next(warps for width, warps in _NUM_WARPS if block <= width)
