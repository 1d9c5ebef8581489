// Attention over paged keys and values, read where they lie.
//
// Decode: one row of a sequence; the query heads that share a KV head go through its keys together.
// Prefill: keys and values of a range are packed as weights (see matmul.h), then scores and their mix are two products.
#pragma once
#include "matmul.h"
#include "pointwise.h"
#include "team.h"

namespace {

constexpr int kQueryRows = 64;  // rows of a prefill chunk that share one packing of keys and values

constexpr int kManySpans = 8;  // so many decode rows give every thread work without being split by heads

struct AttentionItem {
  int32_t span, kv_head, num_kv_heads, first_row, num_rows;  // rows within the span
};

inline int64_t attention_items(const LpxModel* model, const LpxBatch* batch, AttentionItem* items) {
  int64_t count = 0;
  for (int pass = 0; pass < 2; ++pass)  // long ones first
    for (int32_t span = 0; span < batch->num_spans; ++span) {
      const int32_t rows = batch->spans[span].num_rows;
      if ((rows > 1) != (pass == 0)) continue;
      // The heads of a decode row lie side by side in each page: together they are read in longer runs.
      const bool is_whole = rows == 1 && batch->num_spans >= kManySpans;
      const int32_t heads = static_cast<int32_t>(is_whole ? model->num_kv_heads : 1);
      for (int32_t head = 0; head < model->num_kv_heads; head += heads)
        for (int32_t row = 0; row < rows; row += kQueryRows, ++count)
          if (items) items[count] = {span, head, heads, row, static_cast<int32_t>(smaller(kQueryRows, rows - row))};
    }
  return count;
}

// Keys or values of one KV head of one sequence, position by position.
template <class T>
struct Paged {
  const T* storage;
  const int32_t* pages;
  int64_t page_stride, page_size, head_dim;
  Paged next_head() const { return {storage + page_size * head_dim, pages, page_stride, page_size, head_dim}; }
  const T* operator[](int64_t position) const {
    return storage + pages[position / page_size] * page_stride + position % page_size * head_dim;
  }
};

// Goes through them without a division a step.
template <class T>
struct Cursor {
  Paged<T> of;
  const int32_t* page;
  int64_t offset;
  Cursor(const Paged<T>& paged, int64_t position)
      : of(paged), page(paged.pages + position / paged.page_size), offset(position % paged.page_size) {}
  const T* next() {
    const T* result = of.storage + *page * of.page_stride + offset * of.head_dim;
    if (++offset == of.page_size) offset = 0, ++page;
    return result;
  }
};

template <class T>
T* kv_head_of(const LpxModel* model, const LpxCache* cache, int64_t layer, int64_t is_value, int64_t head) {
  const int64_t head_elements = cache->page_size * model->head_dim;
  return static_cast<T*>(cache->storage) + ((layer * 2 + is_value) * model->num_kv_heads + head) * head_elements;
}

template <class T>
Paged<T> paged(const LpxModel* model, const LpxCache* cache, const LpxBatch* batch, int64_t layer, int64_t is_value,
               const AttentionItem& item) {
  const int64_t stride = cache->num_layers * 2 * model->num_kv_heads * cache->page_size * model->head_dim;
  return {kv_head_of<T>(model, cache, layer, is_value, item.kv_head), batch->pages + batch->spans[item.span].first_page,
          stride, cache->page_size, model->head_dim};
}

inline int64_t first_visible(int64_t position, int64_t window) { return window ? larger(0, position - window + 1) : 0; }

// scores[0 .. n) -> e**(scale * (score - largest)); gives their sum.
inline float softmax_row(float* scores, int64_t n, float scale) {
  vf top = set1(-__builtin_inff());
  float peak = -__builtin_inff();
  int64_t i = 0;
  for (; i + W <= n; i += W) top = maximum(load(scores + i), top);
  peak = largest(top);
  for (; i < n; ++i) peak = scores[i] > peak ? scores[i] : peak;
  float total = 0;
  vf sums = zero();
  for (i = 0; i < n; i += W) {
    const vf value = exponential(mul(sub(load_up_to(scores + i, n - i), set1(peak)), set1(scale)));
    store_up_to(scores + i, value, n - i);
    if (n - i >= W) sums = add(sums, value);
    else for (int64_t j = i; j < n; ++j) total += scores[j];
  }
  return total + sum(sums);
}

// Scratch of one thread.
template <class P>
struct Scratch {
  typename P::w_t *keys, *values;
  float* scores;             // [rows, stride]; rows: kTileRows, or the query heads if they are more
  typename P::x_t* weights;  // [rows, stride]
  typename P::x_t* queries;  // [rows, x_stride(head_dim)]
  float* mixed;              // [kTileRows, head_dim]
  float* factors;            // [rows]
  int64_t stride;
};

inline int64_t aligned(int64_t num_bytes) { return round_up(num_bytes, 64); }

template <class P>
int64_t lay_out(int64_t longest, int64_t num_heads, int64_t head_dim, char* base, Scratch<P>* scratch) {
  const int64_t stride = round_up(longest, 32) + kBlock, rows = larger(kTileRows, num_heads);
  char* at = base;
  const auto take = [&](int64_t num_bytes) {
    char* result = at;
    at += aligned(num_bytes);
    return result;
  };
  scratch->stride = stride;
  scratch->keys = reinterpret_cast<typename P::w_t*>(take(stride * (head_dim + 2) * sizeof(typename P::w_t)));
  scratch->values =
      reinterpret_cast<typename P::w_t*>(take(stride * (round_up(head_dim, W)) * sizeof(typename P::w_t)));
  scratch->scores = reinterpret_cast<float*>(take(rows * stride * sizeof(float)));
  scratch->weights = reinterpret_cast<typename P::x_t*>(take(rows * stride * sizeof(typename P::x_t)));
  scratch->queries = reinterpret_cast<typename P::x_t*>(take(rows * x_stride(head_dim) * sizeof(typename P::x_t)));
  scratch->mixed = reinterpret_cast<float*>(take(rows * head_dim * sizeof(float)));
  scratch->factors = reinterpret_cast<float*>(take(rows * sizeof(float)));
  return at - base;
}

// ---- decode

constexpr int kHeads = 4;  // query heads that go through the values together

// The page of a position, several heads: two lines of each KB, the processor's own prefetcher does the rest.
template <class T>
void fetch_page(Paged<T> of, int64_t position, int64_t num_heads) {
  const int64_t bytes = num_heads * of.page_size * of.head_dim * static_cast<int64_t>(sizeof(T));
  const char* page = reinterpret_cast<const char*>(of.storage + of.pages[position / of.page_size] * of.page_stride);
  for (int64_t at = 0; at < bytes; at += 1024) {
    _mm_prefetch(page + at, _MM_HINT_T1);
    _mm_prefetch(page + at + 64, _MM_HINT_T1);
  }
}

// sums[j] += query . keys[j] over [i, i + what one vector of T and X takes), for W keys; gives how many that were.
template <class X, class T>
inline int64_t add_products(const X* query, const T* const* keys, int64_t i, int64_t size, vf* sums) {
#if LPX_LEVEL >= 3
  if constexpr (sizeof(X) == 2) {
    const __mmask32 some = size - i >= 32 ? ~0u : (1u << (size - i)) - 1;
    const __m512i left = _mm512_maskz_loadu_epi16(some, query + i);
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j)
      sums[j] = Pairs::multiply_add(sums[j], left, _mm512_maskz_loadu_epi16(some, keys[j] + i));
    return 32;
  }
#endif
  const vf left = load_up_to(query + i, size - i);
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) sums[j] = fma(left, load_up_to(keys[j] + i, size - i), sums[j]);
  return W;
}

// Scores of one row with W keys at a time, for the query heads of several KV heads. The next keys and values are fetched.
template <class T, class X>
void decode_scores(const X* queries, int64_t query_stride, int64_t group, int64_t num_kv_heads, Paged<T> keys,
                   Paged<T> values, int64_t first, int64_t stop, float* scores, int64_t scores_stride) {
  const int64_t size = keys.head_dim, head_elements = keys.page_size * size;
  Cursor<T> cursor(keys, first);
  for (int64_t start = first; start < stop; start += W) {
    const int64_t count = smaller(W, stop - start);
    const T* at[W];
    for (int64_t j = 0; j < W; ++j) at[j] = j < count ? cursor.next() : at[0];
    if (start + W < stop) {
      fetch_page(keys, start + W, num_kv_heads);
      fetch_page(values, start + W, num_kv_heads);
    }
    for (int64_t head = 0; head < num_kv_heads; ++head) {
      for (int64_t query = head * group; query < (head + 1) * group; ++query) {
        vf sums[W];
        for (int j = 0; j < W; ++j) sums[j] = zero();
        for (int64_t i = 0; i < size;) i += add_products(queries + query * query_stride, at, i, size, sums);
        store(scores + query * scores_stride + start - first, sums_of(sums));
      }
      for (int64_t j = 0; j < W; ++j) at[j] += head_elements;
    }
  }
}

// out = factor * sum of weight * value. weights come as X, one zero behind the last.
template <class T, int G, class X>
void decode_mix(Paged<T> values, int64_t first, int64_t stop, const X* weights, int64_t weights_stride,
                const float* factors, X* out) {
  const int64_t size = values.head_dim;
  for (int64_t start = 0; start < size; start += 4 * W) {
    vf sums[G][4];
    const int64_t left = smaller(4 * W, size - start);
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < 4; ++v) sums[g][v] = zero();
    Cursor<T> cursor(values, first);
#if LPX_LEVEL >= 3
    if constexpr (sizeof(X) == 2) {
      const __mmask32 low = left >= 32 ? ~0u : (1u << left) - 1;
      const __mmask32 high = left >= 64 ? ~0u : left <= 32 ? 0 : (1u << (left - 32)) - 1;
      for (int64_t position = first; position < stop; position += 2) {
        const T* even = cursor.next() + start;
        const T* odd = position + 1 < stop ? cursor.next() + start : even;
        const __m512i a = _mm512_maskz_loadu_epi16(low, even), b = _mm512_maskz_loadu_epi16(low, odd);
        const __m512i c = _mm512_maskz_loadu_epi16(high, even + 32), d = _mm512_maskz_loadu_epi16(high, odd + 32);
        const __m512i pairs[4] = {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b),
                                  _mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d)};
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const __m512i weight = Pairs::broadcast(weights + g * weights_stride + position - first);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) sums[g][v] = Pairs::multiply_add(sums[g][v], weight, pairs[v]);
        }
      }
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < 4; v += 2) in_order(&sums[g][v], &sums[g][v + 1]);
    } else
#endif
      for (int64_t position = first; position < stop; ++position) {
        const T* value = cursor.next() + start;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          if (v * W >= left) break;
          const vf part = load_up_to(value + v * W, left - v * W);
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g)
            sums[g][v] = fma(set1(weights[g * weights_stride + position - first]), part, sums[g][v]);
        }
      }
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < 4 && v * W < left; ++v)
        store_up_to(out + g * size + start + v * W, mul(sums[g][v], set1(factors[g])), left - v * W);
  }
}

template <class T, class X>
void decode_mix_of(int64_t num_queries, Paged<T> values, int64_t first, int64_t stop, const X* weights, int64_t stride,
                   const float* factors, X* out) {
  switch (num_queries) {
    case 1: return decode_mix<T, 1, X>(values, first, stop, weights, stride, factors, out);
    case 2: return decode_mix<T, 2, X>(values, first, stop, weights, stride, factors, out);
    case 3: return decode_mix<T, 3, X>(values, first, stop, weights, stride, factors, out);
    default: return decode_mix<T, 4, X>(values, first, stop, weights, stride, factors, out);
  }
}

// One row; group query heads for each of num_kv_heads KV heads.
template <class T, class P>
void decode_item(const float* query, int64_t group, int64_t num_kv_heads, Paged<T> keys, Paged<T> values, int64_t first,
                 int64_t stop, float scale, const Scratch<P>& scratch, typename P::x_t* out) {
  using X = typename P::x_t;
  const int64_t size = keys.head_dim, count = stop - first, stride = round_up(count + 1, W);
  const int64_t num_queries = group * num_kv_heads, query_stride = x_stride(size);
  for (int64_t i = 0; i < num_queries; ++i) copy_row(query + i * size, size, scratch.queries + i * query_stride);
  decode_scores<T, X>(scratch.queries, query_stride, group, num_kv_heads, keys, values, first, stop, scratch.scores,
                      stride);
  for (int64_t i = 0; i < num_queries; ++i) {
    scratch.factors[i] = 1.0f / softmax_row(scratch.scores + i * stride, count, scale);
    copy_row(scratch.scores + i * stride, count, scratch.weights + i * stride);
    memset(scratch.weights + i * stride + count, 0, sizeof(X));
  }
  for (int64_t head = 0; head < num_kv_heads; ++head, values = values.next_head())
    for (int64_t g = 0; g < group; g += kHeads) {
      const int64_t at = head * group + g;
      decode_mix_of<T, X>(smaller(kHeads, group - g), values, first, stop, scratch.weights + at * stride, stride,
                          scratch.factors + at, out + at * size);
    }
}

// ---- prefill

// Keys [n, k = head_dim] as a packed weight: like pack(), but row by row and in steps.
template <class P>
void pack_keys(Paged<typename P::w_t> keys, int64_t first, int64_t n, typename P::w_t* out) {
  const int64_t size = keys.head_dim, steps = num_steps<P>(size);
  for (int64_t row = 0; row < round_up(n, W); ++row) {
    const int64_t block = row / kBlock, columns = smaller(kBlock, round_up(n, W) - block * kBlock);
    typename P::w_t* to = out + block_start<P>(block, size) + row % kBlock * P::step;
    const typename P::w_t* key = row < n ? keys[first + row] : nullptr;
    for (int64_t step = 0; step < steps; ++step, to += columns * P::step)
      if (key) memcpy(to, key + step * P::step, sizeof(*to) * P::step);
      else memset(to, 0, sizeof(*to) * P::step);
  }
}

// Values [k = positions, n = head_dim] as a packed weight.
template <class P>
void pack_values(Paged<typename P::w_t> values, int64_t first, int64_t k, typename P::w_t* out) {
  const int64_t size = values.head_dim, steps = num_steps<P>(k);
  for (int64_t step = 0; step < steps; ++step) {
    const typename P::w_t* even = values[first + step * P::step];
    const bool has_odd = P::step == 2 && step * 2 + 1 < k;
    const typename P::w_t* odd = has_odd ? values[first + step * 2 + 1] : nullptr;
    for (int64_t start = 0; start < size; start += kBlock) {
      const int64_t columns = smaller(kBlock, round_up(size - start, W)), real = smaller(columns, size - start);
      typename P::w_t* to = out + block_start<P>(start / kBlock, k) + step * columns * P::step;
      if (real < columns) memset(to, 0, sizeof(*to) * columns * P::step);
      if (P::step == 1) memcpy(to, even + start, sizeof(*to) * real);
      else if (odd)
        for (int64_t i = 0; i < real; ++i) to[2 * i] = even[start + i], to[2 * i + 1] = odd[start + i];
      else
        for (int64_t i = 0; i < real; ++i) to[2 * i] = even[start + i], to[2 * i + 1] = 0;
    }
  }
}

// Query number i of an item is head i % group of row i / group.
template <class P>
void prefill_item(const LpxModel* model, const LpxSpan& span, const AttentionItem& item, int64_t window,
                  Paged<typename P::w_t> keys, Paged<typename P::w_t> values, const float* qkv, int64_t qkv_stride,
                  typename P::x_t* out, int64_t out_stride, const Scratch<P>& scratch) {
  using X = typename P::x_t;
  const int64_t size = model->head_dim, group = model->num_heads / model->num_kv_heads, stride = scratch.stride;
  const int64_t before = span.context_len - span.num_rows + item.first_row;  // position of the item's first row
  const int64_t start = first_visible(before, window), num_keys = before + item.num_rows - start;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  pack_keys<P>(keys, start, num_keys, scratch.keys);
  pack_values<P>(values, start, num_keys, scratch.values);
  const int64_t num_queries = item.num_rows * group;
  for (int64_t query = 0; query < num_queries; query += kTileRows) {
    const int64_t count = smaller(kTileRows, num_queries - query);
    const auto row_of = [&](int64_t i) { return span.start_row + item.first_row + (query + i) / group; };
    const auto head_of = [&](int64_t i) { return item.kv_head * group + (query + i) % group; };
    for (int64_t i = 0; i < count; ++i)
      norm_row(qkv + row_of(i) * qkv_stride + head_of(i) * size, nullptr, size, x_stride(size), 0.0f,
               scratch.queries + i * x_stride(size));
    const int64_t visible = before + (query + count - 1) / group + 1 - start;  // keys that the last query sees
    for (int64_t key = 0; key < visible; key += kBlock)
      multiply_block<P>(count, {scratch.queries, x_stride(size)}, scratch.keys + block_start<P>(key / kBlock, size),
                        size, nullptr, {scratch.scores + key, stride}, smaller(kBlock, round_up(num_keys, W) - key),
                        false);
    float factors[kTileRows];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = before + (query + i) / group;
      const int64_t low = first_visible(position, window) - start, high = position + 1 - start;
      float* scores = scratch.scores + i * stride;
      factors[i] = 1.0f / softmax_row(scores + low, high - low, scale);
      X* weights = scratch.weights + i * stride;
      memset(weights, 0, sizeof(X) * low);
      copy_row(scores + low, high - low, weights + low);
      memset(weights + high, 0, sizeof(X) * (round_up(visible, 2) - high));
    }
    for (int64_t column = 0; column < size; column += kBlock) {
      // Only the positions that the last query sees: their number is the product's K, the packing's is num_keys.
      const int64_t columns = smaller(kBlock, size - column);
      const auto* block = scratch.values + block_start<P>(column / kBlock, num_keys);
      multiply_block<P>(count, {scratch.weights, stride}, block, visible, nullptr, {scratch.mixed + column, size},
                        columns, false);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* mixed = scratch.mixed + i * size;
      for (int64_t c = 0; c < size; ++c) mixed[c] *= factors[i];
      copy_row(mixed, size, out + row_of(i) * out_stride + head_of(i) * size);
    }
  }
}

}  // namespace
