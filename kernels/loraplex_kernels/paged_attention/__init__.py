"""Attention over paged keys and values: decode and chunked prefill. The mathematics is in README.md."""
