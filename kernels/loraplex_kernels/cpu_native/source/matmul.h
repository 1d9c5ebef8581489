// Products of a few rows with a packed weight.
//
// A weight [N, K] is packed into blocks of kBlock columns (outputs); inside a block, for each step of K, the weights of
// all columns side by side: one vector load then feeds W outputs, and the block is read from start to end.
//   block b starts at element b * kBlock * K', K' = K rounded up to the step; columns are padded to W with zeros.
#pragma once
#include "simd.h"

namespace {

constexpr int kVecs = 3;  // 8 rows x 3 vectors of sums (AVX2: 4 x 3) leave registers for the weights and one input
constexpr int kBlock = kVecs * W;

// How inputs (x) and weights (w) are multiplied. step: how many inputs one multiplication takes.
struct Float {
  using x_t = float;
  using w_t = float;
  static constexpr int step = 1;
  static vf weights(const w_t* w) { return load(w); }
  static vf broadcast(const x_t* x) { return set1(*x); }
  static vf multiply_add(vf sums, vf x, vf w) { return fma(x, w, sums); }
};
struct Widened {  // bf16 weights without bf16 arithmetic
  using x_t = float;
  using w_t = bf16;
  static constexpr int step = 1;
  static vf weights(const w_t* w) { return load(w); }
  static vf broadcast(const x_t* x) { return set1(*x); }
  static vf multiply_add(vf sums, vf x, vf w) { return fma(x, w, sums); }
};
#if LPX_LEVEL >= 3
struct Pairs {  // sums += x[2k] * w[2k] + x[2k + 1] * w[2k + 1]
  using x_t = bf16;
  using w_t = bf16;
  static constexpr int step = 2;
  static __m512i weights(const w_t* w) { return _mm512_loadu_si512(w); }
  static __m512i broadcast(const x_t* x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static vf multiply_add(vf sums, __m512i x, __m512i w) { return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)w); }
};
using Half = Pairs;
#else
using Half = Widened;
#endif

template <class P>
inline int64_t num_steps(int64_t k) { return (k + P::step - 1) / P::step; }
template <class P>
inline int64_t packed_elements(int64_t n, int64_t k) { return round_up(n, W) * num_steps<P>(k) * P::step; }
template <class P>
inline int64_t block_start(int64_t block, int64_t k) { return block * kBlock * num_steps<P>(k) * P::step; }
inline int64_t num_blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

template <class P>
void pack(const typename P::w_t* weight, int64_t n, int64_t k, typename P::w_t* out) {
  const int64_t steps = num_steps<P>(k);
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t columns = smaller(kBlock, round_up(n - start, W));
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t column = start; column < start + columns; ++column)
        for (int64_t at = step * P::step; at < (step + 1) * P::step; ++at)
          *out++ = column < n && at < k ? weight[column * k + at] : 0;
  }
}

// Memory that is needed soon, fetched in small bursts between multiplications, so that the memory works while the
// products do. Addresses only: nothing is read. What this block needs comes before what later phases need.
struct Ahead {
  struct Part {
    const char *at, *end;
    int64_t group;  // of sites; see lora.h
  };
  static constexpr int kSteps = 4;  // between two bursts

  int lines = 0;  // of 64 bytes, a burst
  Part *soon = nullptr, *soon_end = nullptr;
  Part *later = nullptr, *later_end = nullptr;

  void burst() {
    const int left = fetch(&soon, soon_end, lines);
    if (left) fetch(&later, later_end, left);
  }

 private:
  static int fetch(Part** part, Part* stop, int left) {
    for (; *part != stop; ++*part) {
      for (; left && (*part)->at < (*part)->end; --left, (*part)->at += 64) _mm_prefetch((*part)->at, _MM_HINT_T1);
      if (!left) break;
    }
    return left;
  }
};

// out[row][0 .. columns) (+)= x[row] . w + bias for R rows.
template <class P, int R, int V>
void tile(const typename P::x_t* const* x, const typename P::w_t* w, int64_t steps, const float* bias, float* const* out,
          int64_t columns, bool accumulate, Ahead* ahead) {
  vf sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v)
      sums[r][v] = accumulate ? load_up_to(out[r] + v * W, columns - v * W) : zero();
  const typename P::x_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = x[r];
  for (int64_t step = 0; step < steps;) {
    const int64_t stop = smaller(steps, step + Ahead::kSteps);
    if (ahead) ahead->burst();
    for (; step < stop; ++step) {
      decltype(P::weights(w)) weights[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) weights[v] = P::weights(w + v * W * P::step);
      w += V * W * P::step;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto input = P::broadcast(rows[r] + step * P::step);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sums[r][v] = P::multiply_add(sums[r][v], input, weights[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      vf total = sums[r][v];
      if (bias) total = add(total, load_up_to(bias + v * W, columns - v * W));
      store_up_to(out[r] + v * W, total, columns - v * W);
    }
}

template <class P, int V>
void tile_of(int64_t num_rows, const typename P::x_t* const* x, const typename P::w_t* w, int64_t steps,
             const float* bias, float* const* out, int64_t columns, bool accumulate, Ahead* ahead) {
  switch (num_rows) {
    case 1: return tile<P, 1, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 2: return tile<P, 2, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 3: return tile<P, 3, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 4: return tile<P, 4, V>(x, w, steps, bias, out, columns, accumulate, ahead);
#if LPX_LEVEL >= 2
    case 5: return tile<P, 5, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 6: return tile<P, 6, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 7: return tile<P, 7, V>(x, w, steps, bias, out, columns, accumulate, ahead);
    case 8: return tile<P, 8, V>(x, w, steps, bias, out, columns, accumulate, ahead);
#endif
  }
}

// Rows of a matrix: row i is at data + (index ? index[i] : i) * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  const int32_t* index = nullptr;
  T* operator[](int64_t i) const { return data + (index ? index[i] : i) * stride; }
};

// out rows [columns] (+)= x rows . one packed block, for num_rows rows. columns: 1 .. kBlock, what is left of N.
template <class P>
void multiply_block(int64_t num_rows, Rows<const typename P::x_t> x, const typename P::w_t* block, int64_t k,
                    const float* bias, Rows<float> out, int64_t columns, bool accumulate, Ahead* ahead = nullptr) {
  const int64_t steps = num_steps<P>(k), vecs = (columns + W - 1) / W;
  for (int64_t row = 0; row < num_rows; row += kTileRows) {
    const int64_t count = smaller(kTileRows, num_rows - row);
    const typename P::x_t* from[kTileRows];
    float* to[kTileRows];
    for (int64_t i = 0; i < count; ++i) {
      from[i] = x[row + i];
      to[i] = out[row + i];
    }
    if (vecs == 3) tile_of<P, 3>(count, from, block, steps, bias, to, columns, accumulate, ahead);
    else if (vecs == 2) tile_of<P, 2>(count, from, block, steps, bias, to, columns, accumulate, ahead);
    else tile_of<P, 1>(count, from, block, steps, bias, to, columns, accumulate, ahead);
  }
}

// Stride of rows that a kernel reads as x: padded, so that pairs and whole vectors may be read; the padding is zero.
inline int64_t x_stride(int64_t k) { return round_up(k, 32); }

}  // namespace
