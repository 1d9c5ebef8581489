"""The CPU engine's own kernels: one small C++ library, compiled on this machine for this machine. See README.md."""
