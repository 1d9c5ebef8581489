"""Measurements of the Triton kernels: on a GPU by ``run.sh``, and of their machine code without one by ``cubins``."""
