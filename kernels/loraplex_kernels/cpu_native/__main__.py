"""Say what the CPU engine computes with here; builds the library where the cache has none."""

import sys

from loraplex_kernels.cpu_native.library import describe

sys.stdout.write(describe() + "\n")
