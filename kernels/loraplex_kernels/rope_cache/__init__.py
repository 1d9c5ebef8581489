"""Rotate q and k, write k and v into the pages. See README.md."""
