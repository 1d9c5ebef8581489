"""The structs of source/abi.h; the library says its sizes, and loading compares them."""

import ctypes
from typing import Final

MAX_SITES: Final = 3
F32: Final = 0
BF16: Final = 1
MAX_RANK: Final = (1 << 16) - 1
BIAS: Final = 1
DORA: Final = 2


class Linear(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p * MAX_SITES),
        ("bias", ctypes.c_void_p),
        ("out_features", ctypes.c_int64 * MAX_SITES),
        ("in_features", ctypes.c_int64),
    )


class Site(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("vector", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("rank", ctypes.c_uint16),
        ("dtype", ctypes.c_uint8),
        ("kind", ctypes.c_uint8),
    )


class Group(ctypes.Structure):
    _fields_ = (("sites", Site * MAX_SITES),)


class Lora(ctypes.Structure):
    _fields_ = (
        ("num_segments", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("row_weights", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Linear),
        ("o", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("input_norm", ctypes.c_void_p),
        ("post_attention_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("window", ctypes.c_int64),
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("num_layers", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("intermediate_size", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class Cache(ctypes.Structure):
    _fields_ = (
        ("storage", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("num_pages", ctypes.c_int64),
    )


class Span(ctypes.Structure):
    _fields_ = (
        ("start_row", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        ("context_len", ctypes.c_int32),
        ("first_page", ctypes.c_int32),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("num_rows", ctypes.c_int64),
        ("num_spans", ctypes.c_int64),
        ("num_page_ids", ctypes.c_int64),
        ("spans", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("lora", Lora),
    )


ALL: Final = (Linear, Site, Group, Lora, Layer, Model, Cache, Span, Batch)
"""In the order of lpx_sizes."""
