"""Norms, activation, rotation and cache write: what is done row by row."""

from typing import Any

import pytest
import torch
from tests.kernels.triton_suite.device import DEVICE, DTYPES, assert_close, nan, poisoned_memory, randn, relative_error

from loraplex_kernels.activation import reference as activation_reference
from loraplex_kernels.activation.launcher import silu_and_multiply
from loraplex_kernels.norm import reference as norm_reference
from loraplex_kernels.norm.launcher import norm_heads, rms_norm
from loraplex_kernels.rope_cache import reference as rope_reference
from loraplex_kernels.rope_cache.launcher import rope_and_cache

__all__ = ["poisoned_memory"]

EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (3, 64), (2, 257), (5, 576)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(rows: int, hidden: int, with_residual: bool, dtype: torch.dtype) -> None:
    x, weight = randn(rows, hidden, seed=1, dtype=dtype), randn(hidden, seed=2, dtype=dtype)
    residual = randn(rows, hidden, seed=3, dtype=dtype) if with_residual else None
    out = nan(rows, hidden, dtype=dtype)
    if residual is None:
        wanted = norm_reference.rms_norm(x.double(), weight.double(), EPS)
        rms_norm(x, weight, out, EPS)
    else:
        total, wanted = norm_reference.add_rms_norm(x.double(), residual.double(), weight.double(), EPS, dtype)
        rms_norm(x, weight, out, EPS, residual=residual)
        assert torch.equal(residual.double(), total)
    assert_close(out, wanted, dtype)


def test_rms_norm_of_strided_rows_and_in_place() -> None:
    wide = randn(4, 100, seed=1, dtype=torch.float32)
    wide[:, 60:] = float("nan")
    x, weight = wide[:, :60], randn(60, seed=2, dtype=torch.float32)
    wanted = norm_reference.rms_norm(x.double(), weight.double(), EPS)
    rms_norm(x, weight, x, EPS)
    assert_close(x, wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 64), (9, 3, 64), (3, 1, 128)])
def test_norm_of_heads_leaves_the_values_alone(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    qkv = randn(3, num_heads + 2 * num_kv_heads, head_dim, seed=1, dtype=dtype)
    q_weight, k_weight = randn(head_dim, seed=2, dtype=dtype), randn(head_dim, seed=3, dtype=dtype)
    query_key, before = qkv[:, : num_heads + num_kv_heads], qkv.clone()
    weights = (q_weight.double(), k_weight.double())
    wanted = norm_reference.norm_heads(query_key.double(), *weights, num_heads, EPS)
    norm_heads(query_key, q_weight, k_weight, num_heads, EPS)
    assert_close(query_key, wanted, dtype)
    assert torch.equal(qkv[:, num_heads + num_kv_heads :], before[:, num_heads + num_kv_heads :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (3, 48), (2, 1100)])
def test_silu_and_multiply(rows: int, inner: int, dtype: torch.dtype) -> None:
    gate_up, out = randn(rows, 2 * inner, seed=4, dtype=dtype) * 4, nan(rows, inner, dtype=dtype)
    silu_and_multiply(gate_up, out)
    assert_close(out, activation_reference.silu_and_multiply(gate_up.double()), dtype)


def _angles(num_positions: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * inverse
    return angles.cos().float().to(DEVICE), angles.sin().float().to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(2, 2, 64), (9, 3, 64), (8, 1, 128), (4, 1, 6)])
@pytest.mark.parametrize("in_place", [False, True])
def test_rotation_and_cache_write_change_their_slots_only(
    num_heads: int, num_kv_heads: int, head_dim: int, in_place: bool, dtype: torch.dtype
) -> None:
    page_size, rows = 4, 5
    qkv = randn(rows, num_heads + 2 * num_kv_heads, head_dim, seed=5, dtype=dtype)
    positions = torch.tensor([0, 7, 3, 99, 12], device=DEVICE)
    # The first and last slot of a page, neighbours across a page, and a row that is no token.
    slots = torch.tensor([3, 4, 0, -1, 11], device=DEVICE)
    cos, sin = _angles(100, head_dim)
    qkv[3] = float("nan")
    storage = nan(4, 2, 2, num_kv_heads, page_size, head_dim, dtype=dtype)
    wanted_storage = storage.double().cpu()
    wanted_query = rope_reference.rope_and_cache(
        qkv.double().cpu(),
        positions.cpu(),
        slots.cpu(),
        cos.double().cpu(),
        sin.double().cpu(),
        wanted_storage[:, 1, 0],
        wanted_storage[:, 1, 1],
        num_heads,
    )
    query = qkv[:, :num_heads] if in_place else nan(rows, num_heads, head_dim, dtype=dtype)
    rope_and_cache(qkv, positions, slots, cos, sin, query, storage[:, 1, 0], storage[:, 1, 1])
    tokens = [0, 1, 2, 4]
    assert_close(query[tokens], wanted_query[tokens].to(DEVICE), dtype)
    assert bool(query[3].isnan().all())
    written = ~wanted_storage.isnan()
    assert torch.equal(~storage.isnan().cpu(), written)
    assert_close(storage.cpu()[written], wanted_storage[written], dtype)


def test_no_rows() -> None:
    empty = torch.zeros(0, 32, device=DEVICE)
    rms_norm(empty, torch.ones(32, device=DEVICE), empty, EPS)
    norm_heads(empty.view(0, 2, 16), torch.ones(16, device=DEVICE), torch.ones(16, device=DEVICE), 1, EPS)
    silu_and_multiply(empty, torch.zeros(0, 16, device=DEVICE))
    kv, none = torch.zeros(1, 1, 4, 8, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    cos, sin = _angles(4, 8)
    rope_and_cache(empty.view(0, 4, 8), none, none, cos, sin, torch.zeros(0, 2, 8, device=DEVICE), kv, kv)


def _bad_calls() -> dict[str, Any]:
    x, weight = torch.ones(3, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    heads = torch.ones(3, 4, 8, device=DEVICE)
    kv, three = torch.ones(2, 1, 4, 8, device=DEVICE), torch.arange(3, device=DEVICE)
    cos, sin = _angles(4, 8)
    return {
        "norm: shape": lambda: rms_norm(x, weight[:7], x, EPS),
        "norm: dtype": lambda: rms_norm(x, weight.half(), x, EPS),
        "norm: residual": lambda: rms_norm(x, weight, x, EPS, residual=x[:2]),
        "norm: stride": lambda: rms_norm(x.t(), torch.ones(3, device=DEVICE), x.t(), EPS),
        "heads: weight": lambda: norm_heads(heads, weight, weight[:4], 2, EPS),
        "heads: count": lambda: norm_heads(heads, weight, weight, 5, EPS),
        "silu: shape": lambda: silu_and_multiply(x, torch.ones(3, 3, device=DEVICE)),
        "silu: dtype": lambda: silu_and_multiply(x, torch.ones(3, 4, device=DEVICE).half()),
        "rope: heads": lambda: rope_and_cache(heads, three, three, cos, sin, heads[:, :1], kv, kv),
        "rope: slots": lambda: rope_and_cache(heads, three, three.int(), cos, sin, heads[:, :2], kv, kv),
        "rope: angles": lambda: rope_and_cache(heads, three, three, cos.half(), sin.half(), heads[:, :2], kv, kv),
    }


@pytest.mark.parametrize("name", list(_bad_calls()))
def test_operands_that_do_not_fit_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="got "):
        _bad_calls()[name]()


def test_a_wrong_position_or_slot_is_noticed() -> None:
    qkv = randn(2, 3, 8, seed=5, dtype=torch.float32)
    cos, sin = _angles(8, 8)
    results = []
    for positions, slots in ([3, 4], [0, 1]), ([3, 5], [0, 1]), ([3, 4], [0, 2]):
        storage, query = torch.zeros(2, 1, 1, 4, 8, device=DEVICE), torch.zeros(2, 1, 8, device=DEVICE)
        index = (torch.tensor(positions, device=DEVICE), torch.tensor(slots, device=DEVICE))
        rope_and_cache(qkv, *index, cos, sin, query, storage[0], storage[1])
        results.append(torch.cat((query.flatten(), storage.flatten())))
    assert relative_error(results[1], results[0]) > 1e-2
    assert relative_error(results[2], results[0]) > 1e-2
