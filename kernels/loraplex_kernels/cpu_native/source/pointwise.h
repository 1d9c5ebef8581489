// What happens to a row between the products: norm, rotation, silu.
#pragma once
#include "simd.h"

namespace {

// 1 / sqrt(mean of squares + eps).
inline float inverse_root_mean_square(const float* x, int64_t n, float eps) {
  vf squares = zero();
  for (int64_t i = 0; i < n; i += W) {
    const vf part = load_up_to(x + i, n - i);
    squares = fma(part, part, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
}

// out[0 .. n) = x * weight / rms(x), or x itself where there is no weight; zeros from n to padded.
template <class X>
void norm_row(const float* x, const float* weight, int64_t n, int64_t padded, float eps, X* out) {
  const vf factor = set1(weight ? inverse_root_mean_square(x, n, eps) : 1.0f);
  for (int64_t i = 0; i < n; i += W) {
    vf value = load_up_to(x + i, n - i);
    if (weight) value = mul(mul(value, factor), load_up_to(weight + i, n - i));
    store_up_to(out + i, value, n - i);
  }
  if (padded > n) memset(out + n, 0, sizeof(X) * static_cast<size_t>(padded - n));
}

// One head, in place: normed where there is a weight, then rotated (halves form the pairs).
inline void rotate_head(float* head, int64_t size, const float* cos, const float* sin, const float* norm, float eps) {
  if (norm) norm_row(head, norm, size, size, eps, head);
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += W) {
    const int64_t left = half - i;
    const vf c = load_up_to(cos + i, left), s = load_up_to(sin + i, left);
    const vf low = load_up_to(head + i, left), high = load_up_to(head + half + i, left);
    store_up_to(head + i, sub(mul(low, c), mul(high, s)), left);
    store_up_to(head + half + i, fma(high, c, mul(low, s)), left);
  }
}

template <class X>
void copy_row(const float* from, int64_t n, X* to) {
  for (int64_t i = 0; i < n; i += W) store_up_to(to + i, load_up_to(from + i, n - i), n - i);
}

// out = gate / (1 + e**-gate) * up
template <class X>
void silu_and_multiply(const float* gate, const float* up, int64_t n, X* out) {
  for (int64_t i = 0; i < n; i += W) {
    const vf g = load_up_to(gate + i, n - i);
    const vf sigmoid = div(set1(1.0f), add(set1(1.0f), exponential(sub(zero(), g))));
    store_up_to(out + i, mul(mul(g, sigmoid), load_up_to(up + i, n - i)), n - i);
  }
}

}  // namespace
