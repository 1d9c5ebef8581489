"""Checks of the Triton kernels against their float64 references.

They run twice: by the interpreter on CPU, in a child process that sets TRITON_INTERPRET before Triton is imported
(``tests/kernels/test_triton_interpreted.py``), and on a GPU (``tests/gpu``).
"""
