// The operations of a decoder step for one instruction set: the level that it is compiled for, see simd.h.
#include "attention.h"
#include "lora.h"

namespace {

enum { kQkv, kO, kGateUp, kDown, kNumGroups };

constexpr int kLines = 3, kLinesWithAdapters = 6;  // see Ahead::lines; by measurement
constexpr int64_t kMaxPages = 512, kMaxPageBytes = 4 << 20;  // of one layer that a thread fetches ahead

// Hands out pieces of the caller's scratch memory; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(base + used);
    used += aligned(count * static_cast<int64_t>(sizeof(T)));
    return result;
  }
};

inline int64_t num_outputs(const LpxLinear* linear) {
  return linear->out_features[0] + linear->out_features[1] + linear->out_features[2];
}

template <class P>
struct Step {
  using X = typename P::x_t;
  using T = typename P::w_t;

  const LpxLora* lora;
  int64_t num_rows;
  Adapters<P> adapters;

  // ---- linears

  void take_lora(Arena& arena, int64_t num_groups) {
    if (!lora->num_segments) return;
    adapters.lora = lora;
    adapters.num_items = segment_items(lora, nullptr);
    ShrinkItem* items = arena.take<ShrinkItem>(adapters.num_items);
    const int64_t stride = round_up(largest_rank(lora, num_groups), 2);
    for (Shrunk& shrunk : adapters.shrunk)
      shrunk = {arena.take<float>(lora->starts[lora->num_segments] * stride), stride};
    adapters.items = items;
  }

  void shrink(Walk& walk, int64_t group, const LpxLinear* linear, const X* x) const {
    if (lora->num_segments) adapters.shrink(walk, group, linear, x);
  }

  // What one thread fetches while it multiplies.
  struct Fetching {
    Ahead ahead;
    Ahead::Part *soon, *later;  // room
  };

  // One block of one site for all rows; out: the block's first column of row 0.
  void block(const LpxLinear* linear, int64_t group, int64_t site, int64_t index, const X* x, const float* bias,
             Rows<float> out, bool accumulate, Fetching* fetching) const {
    const int64_t k = linear->in_features, columns = smaller(kBlock, linear->out_features[site] - index * kBlock);
    const T* weights = static_cast<const T*>(linear->weights[site]) + block_start<P>(index, k);
    Ahead* ahead = nullptr;
    if (fetching) {
      ahead = &fetching->ahead;
      if (lora->num_segments) adapters.announce(group, site, index, columns, ahead, fetching->soon);
    }
    multiply_block<P>(num_rows, {x, x_stride(k)}, weights, k, bias ? bias + index * kBlock : nullptr, out, columns,
                      accumulate, ahead);
    if (lora->num_segments) adapters.expand(group, site, index, columns, out, {x, k, weights});
  }

  // out [num_rows, all sites] (+)= x W^T + bias + deltas.
  void linear(Walk& walk, const LpxLinear* linear, int64_t group, const X* x, float* out, bool accumulate,
              Fetching* fetching) const {
    const int64_t stride = num_outputs(linear);
    int64_t ends[LPX_MAX_SITES], total = 0;
    for (int site = 0; site < LPX_MAX_SITES; ++site) ends[site] = total += num_blocks(linear->out_features[site]);
    walk.run(total, [&](int64_t chunk, int64_t) {
      int64_t site = 0, column = 0;
      while (chunk >= ends[site]) column += linear->out_features[site++];
      const int64_t index = site ? chunk - ends[site - 1] : chunk;
      const float* bias = linear->bias ? linear->bias + column : nullptr;
      block(linear, group, site, index, x, bias, {out + column + index * kBlock, stride}, accumulate, fetching);
    });
  }

  // out [num_rows, x_stride(intermediate)] = silu(gate) * up. buffers: [2 * num_rows * kBlock] a thread.
  void gate_up(Walk& walk, const LpxLinear* linear, int64_t group, const X* x, float* buffer, X* out,
               Fetching* fetching) const {
    const int64_t inner = linear->out_features[0], stride = x_stride(inner);
    float* const gate = buffer;
    float* const up = buffer + num_rows * kBlock;
    walk.run(num_blocks(inner), [&](int64_t index, int64_t) {
      const float* bias = linear->bias;
      block(linear, group, 0, index, x, bias, {gate, kBlock}, false, fetching);
      block(linear, group, 1, index, x, bias ? bias + inner : nullptr, {up, kBlock}, false, fetching);
      const int64_t columns = smaller(kBlock, inner - index * kBlock), last = index * kBlock + columns == inner;
      for (int64_t row = 0; row < num_rows; ++row) {
        X* to = out + row * stride + index * kBlock;
        silu_and_multiply(gate + row * kBlock, up + row * kBlock, columns, to);
        if (last) memset(to + columns, 0, sizeof(X) * (stride - inner));
      }
    });
  }

  void norm(Walk& walk, const float* in, const float* weight, int64_t size, float eps, X* out) const {
    constexpr int64_t rows = 8;
    walk.run((num_rows + rows - 1) / rows, [&](int64_t chunk, int64_t) {
      for (int64_t row = chunk * rows; row < smaller(num_rows, (chunk + 1) * rows); ++row)
        norm_row(in + row * size, weight, size, x_stride(size), eps, out + row * x_stride(size));
    });
  }

  // ---- attention

  struct Attention {
    const AttentionItem* items;
    int64_t num_items;
    char* scratch;
    int64_t scratch_bytes;  // a thread
  };

  static int64_t longest_context(const LpxBatch* batch) {
    int64_t longest = 1;
    for (int64_t i = 0; i < batch->num_spans; ++i) longest = larger(longest, batch->spans[i].context_len);
    return longest;
  }

  static int64_t qkv_size(const LpxModel* model) {
    return (model->num_heads + 2 * model->num_kv_heads) * model->head_dim;
  }

  static Attention take_attention(Arena& arena, const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
    Attention attention;
    attention.num_items = attention_items(model, batch, nullptr);
    attention.items = arena.take<AttentionItem>(attention.num_items);
    Scratch<P> scratch;
    attention.scratch_bytes = lay_out<P>(longest_context(batch), model->num_heads, model->head_dim, nullptr, &scratch);
    attention.scratch = arena.take<char>(attention.scratch_bytes * num_threads);
    return attention;
  }

  // Rotates queries and keys in place and stores keys and values.
  void store_keys(Walk& walk, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch, int64_t index,
                  float* qkv) const {
    const LpxLayer& layer = model->layers[index];
    const int64_t size = model->head_dim, heads = model->num_heads, kv_heads = model->num_kv_heads, half = size / 2;
    const int64_t page_stride = cache->num_layers * 2 * kv_heads * cache->page_size * size;
    constexpr int64_t rows = 4;
    walk.run((num_rows + rows - 1) / rows, [&](int64_t chunk, int64_t) {
      for (int64_t row = chunk * rows; row < smaller(num_rows, (chunk + 1) * rows); ++row) {
        float* head = qkv + row * qkv_size(model);
        const float *cos = batch->cos + row * half, *sin = batch->sin + row * half;
        for (int64_t i = 0; i < heads; ++i, head += size)
          rotate_head(head, size, cos, sin, layer.q_norm, model->norm_eps);
        const int64_t page = batch->slots[row] / cache->page_size, offset = batch->slots[row] % cache->page_size;
        for (int64_t i = 0; i < 2 * kv_heads; ++i, head += size) {
          const int64_t is_value = i >= kv_heads;
          if (!is_value) rotate_head(head, size, cos, sin, layer.k_norm, model->norm_eps);
          T* to = kv_head_of<T>(model, cache, index, is_value, i % kv_heads) + page * page_stride + offset * size;
          copy_row(head, size, to);
        }
      }
    });
  }

  void attend(Walk& walk, int64_t thread, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch,
              int64_t index, const float* qkv, X* out, const Attention& attention) const {
    const int64_t size = model->head_dim, group = model->num_heads / model->num_kv_heads;
    const int64_t stride = qkv_size(model), out_stride = x_stride(model->num_heads * size);
    const int64_t window = model->layers[index].window;
    Scratch<P> scratch;
    lay_out<P>(longest_context(batch), model->num_heads, size, attention.scratch + thread * attention.scratch_bytes, &scratch);
    walk.run(attention.num_items, [&](int64_t chunk, int64_t) {
      const AttentionItem& item = attention.items[chunk];
      const LpxSpan& span = batch->spans[item.span];
      const Paged<T> keys = paged<T>(model, cache, batch, index, 0, item);
      const Paged<T> values = paged<T>(model, cache, batch, index, 1, item);
      if (span.num_rows > 1)
        return prefill_item<P>(model, span, item, window, keys, values, qkv, stride, out, out_stride, scratch);
      const int64_t first = first_visible(span.context_len - 1, window), head = item.kv_head * group * size;
      decode_item<T, P>(qkv + span.start_row * stride + head, group, item.num_kv_heads, keys, values, first, span.context_len,
                  1.0f / __builtin_sqrtf(static_cast<float>(size)), scratch,
                  out + span.start_row * out_stride + head);
    });
  }

  // ---- all layers

  struct Buffers {
    X *normed, *mixed, *inner;
    float *qkv, *blocks;
    Attention attention;
    Ahead::Part* parts;
  };

  // Room for the parts that one thread fetches: of B a block; of A two groups; pages.
  static int64_t parts_of_thread(const LpxBatch* batch) {
    return batch->lora.num_segments * (1 + 2 * LPX_MAX_SITES) + kMaxPages;
  }

  static int64_t lay_out_layers(Step& step, const LpxModel* model, const LpxBatch* batch, int64_t num_threads,
                                char* base, Buffers* buffers) {
    Arena arena{base};
    const int64_t rows = batch->num_rows;
    buffers->normed = arena.take<X>(rows * x_stride(model->hidden_size));
    buffers->mixed = arena.take<X>(rows * x_stride(model->num_heads * model->head_dim));
    buffers->inner = arena.take<X>(rows * x_stride(model->intermediate_size));
    buffers->qkv = arena.take<float>(rows * qkv_size(model));
    buffers->blocks = arena.take<float>(2 * rows * kBlock * num_threads);
    buffers->attention = take_attention(arena, model, batch, num_threads);
    step.take_lora(arena, model->num_layers * kNumGroups);
    buffers->parts = arena.take<Ahead::Part>(parts_of_thread(batch) * num_threads);
    return arena.used;
  }

  // While the products of `group` run, A of the second group after it comes near; from o on also the keys and values that
  // the next layer's decode rows read.
  void fetch_after(Fetching* fetching, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch, int64_t group,
                   int64_t thread, int64_t num_threads) const {
    Ahead& ahead = fetching->ahead;
    Ahead::Part* end = fetching->later;
    for (const Ahead::Part* part = ahead.later; part != ahead.later_end; ++part)
      if (part->group > group) *end++ = *part;
    const int64_t next = group + 2;
    if (lora->num_segments && next < model->num_layers * kNumGroups) {
      const LpxLayer& layer = model->layers[next / kNumGroups];
      const LpxLinear* linears[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
      end = adapters.announce_shrink(next, linears[next % kNumGroups]->in_features, thread, num_threads, end);
    }
    const int64_t layer = group / kNumGroups + 1;
    if (group % kNumGroups == kO && layer < model->num_layers)
      end = announce_pages(model, cache, batch, layer, thread, num_threads, end);
    ahead.later = fetching->later;
    ahead.later_end = end;
  }

  // What this thread's share of the decode rows reads in a layer, as far as caches have room for it.
  static Ahead::Part* announce_pages(const LpxModel* model, const LpxCache* cache, const LpxBatch* batch, int64_t layer,
                                     int64_t thread, int64_t num_threads, Ahead::Part* end) {
    const int64_t heads = cache->page_size * model->head_dim * 2 * model->num_kv_heads;  // keys and values of a page
    const int64_t bytes = heads * static_cast<int64_t>(sizeof(T)), window = model->layers[layer].window;
    int64_t room = smaller(kMaxPages, kMaxPageBytes / bytes);
    for (int64_t i = thread; i < batch->num_spans; i += num_threads) {
      const LpxSpan& span = batch->spans[i];
      if (span.num_rows > 1) continue;
      const int64_t first = first_visible(span.context_len - 1, window) / cache->page_size;
      for (int64_t page = first; page * cache->page_size < span.context_len; ++page) {
        if (--room < 0) return end;
        const int64_t id = batch->pages[span.first_page + page];
        const char* at = static_cast<const char*>(cache->storage) + (id * cache->num_layers + layer) * bytes;
        *end++ = {at, at + bytes, layer * kNumGroups + kO};
      }
    }
    return end;
  }

  static int64_t layers_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
    Step step{&batch->lora, batch->num_rows, {}};
    Buffers buffers;
    return lay_out_layers(step, model, batch, num_threads, nullptr, &buffers);
  }

  static void layers(LpxTeam* team, int64_t thread, const LpxModel* model, const LpxCache* cache,
                     const LpxBatch* batch, void* scratch) {
    Step step{&batch->lora, batch->num_rows, {}};
    Buffers at;
    lay_out_layers(step, model, batch, team->num_threads, static_cast<char*>(scratch), &at);
    Walk walk(team);
    const int64_t hidden_size = model->hidden_size;
    float* blocks = at.blocks + thread * 2 * batch->num_rows * kBlock;
    Fetching fetching;
    fetching.soon = at.parts + thread * parts_of_thread(batch);
    fetching.later = fetching.soon + batch->lora.num_segments;
    fetching.ahead.lines = batch->lora.num_segments ? kLinesWithAdapters : kLines;
    const auto fetch_after = [&](int64_t group) {
      step.fetch_after(&fetching, model, cache, batch, group, thread, team->num_threads);
    };
    step.prepare(walk, model, batch, at.attention, at.mixed);
    for (int64_t index = 0; index < model->num_layers; ++index) {
      const LpxLayer& layer = model->layers[index];
      const int64_t group = index * kNumGroups;
      step.norm(walk, batch->hidden, layer.input_norm, hidden_size, model->norm_eps, at.normed);
      step.shrink(walk, group + kQkv, &layer.qkv, at.normed);
      fetch_after(group + kQkv);
      step.linear(walk, &layer.qkv, group + kQkv, at.normed, at.qkv, false, &fetching);
      step.store_keys(walk, model, cache, batch, index, at.qkv);
      step.attend(walk, thread, model, cache, batch, index, at.qkv, at.mixed, at.attention);
      step.shrink(walk, group + kO, &layer.o, at.mixed);
      fetch_after(group + kO);
      step.linear(walk, &layer.o, group + kO, at.mixed, batch->hidden, true, &fetching);
      step.norm(walk, batch->hidden, layer.post_attention_norm, hidden_size, model->norm_eps, at.normed);
      step.shrink(walk, group + kGateUp, &layer.gate_up, at.normed);
      fetch_after(group + kGateUp);
      step.gate_up(walk, &layer.gate_up, group + kGateUp, at.normed, blocks, at.inner, &fetching);
      step.shrink(walk, group + kDown, &layer.down, at.inner);
      fetch_after(group + kDown);
      step.linear(walk, &layer.down, group + kDown, at.inner, batch->hidden, true, &fetching);
    }
  }

  // Once a call, before anything else: the lists of work, and the padding of rows that are written piece by piece.
  void prepare(Walk& walk, const LpxModel* model, const LpxBatch* batch, const Attention& attention, X* mixed) const {
    walk.run(1, [&](int64_t, int64_t) {
      attention_items(model, batch, const_cast<AttentionItem*>(attention.items));
      if (lora->num_segments) segment_items(lora, const_cast<ShrinkItem*>(adapters.items));
      const int64_t size = model->num_heads * model->head_dim, stride = x_stride(size);
      for (int64_t row = 0; row < num_rows; ++row) memset(mixed + row * stride + size, 0, sizeof(X) * (stride - size));
    });
  }

  // ---- single operations

  static int64_t lay_out_linear(Step& step, const LpxLinear* linear, char* base, X** normed) {
    Arena arena{base};
    *normed = arena.take<X>(step.num_rows * x_stride(linear->in_features));
    step.take_lora(arena, 1);
    return arena.used;
  }

  static int64_t linear_scratch(const LpxLinear* linear, int64_t num_rows, const LpxLora* lora) {
    Step step{lora, num_rows, {}};
    X* normed;
    return lay_out_linear(step, linear, nullptr, &normed);
  }

  static void one_linear(LpxTeam* team, const LpxLinear* linear, int64_t num_rows, const float* x, const float* norm,
                         float norm_eps, const LpxLora* lora, float* out, void* scratch) {
    Step step{lora, num_rows, {}};
    X* normed;
    lay_out_linear(step, linear, static_cast<char*>(scratch), &normed);
    Walk walk(team);
    walk.run(1, [&](int64_t, int64_t) {
      if (lora->num_segments) segment_items(lora, const_cast<ShrinkItem*>(step.adapters.items));
    });
    step.norm(walk, x, norm, linear->in_features, norm_eps, normed);
    step.shrink(walk, 0, linear, normed);
    step.linear(walk, linear, 0, normed, out, false, nullptr);
  }

  static int64_t attention_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
    Arena arena{nullptr};
    take_attention(arena, model, batch, num_threads);
    arena.take<X>(batch->num_rows * x_stride(model->num_heads * model->head_dim));
    return arena.used;
  }

  static void one_attention(LpxTeam* team, int64_t thread, const LpxModel* model, const LpxCache* cache,
                            const LpxBatch* batch, int64_t layer, float* qkv, float* out, void* scratch) {
    Step step{&batch->lora, batch->num_rows, {}};
    Arena arena{static_cast<char*>(scratch)};
    const Attention attention = take_attention(arena, model, batch, team->num_threads);
    const int64_t size = model->num_heads * model->head_dim;
    X* mixed = arena.take<X>(batch->num_rows * x_stride(size));
    Walk walk(team);
    step.prepare(walk, model, batch, attention, mixed);
    step.store_keys(walk, model, cache, batch, layer, qkv);
    step.attend(walk, thread, model, cache, batch, layer, qkv, mixed, attention);
    walk.run(batch->num_rows, [&](int64_t row, int64_t) {
      for (int64_t i = 0; i < size; i += W)
        store_up_to(out + row * size + i, load_up_to(mixed + row * x_stride(size) + i, size - i), size - i);
    });
  }
};

// ---- by dtype of the model

int64_t packed_elements_of(int32_t dtype, int64_t n, int64_t k) {
  return dtype == LPX_BF16 ? packed_elements<Half>(n, k) : packed_elements<Float>(n, k);
}
void pack_of(int32_t dtype, const void* weight, int64_t n, int64_t k, void* out) {
  if (dtype == LPX_BF16) pack<Half>(static_cast<const bf16*>(weight), n, k, static_cast<bf16*>(out));
  else pack<Float>(static_cast<const float*>(weight), n, k, static_cast<float*>(out));
}
int64_t layers_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
  return model->dtype == LPX_BF16 ? Step<Half>::layers_scratch(model, batch, num_threads)
                                  : Step<Float>::layers_scratch(model, batch, num_threads);
}
void layers(LpxTeam* team, int64_t thread, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch,
            void* scratch) {
  if (model->dtype == LPX_BF16) Step<Half>::layers(team, thread, model, cache, batch, scratch);
  else Step<Float>::layers(team, thread, model, cache, batch, scratch);
}
int64_t linear_scratch(const LpxLinear* linear, int32_t dtype, int64_t num_rows, const LpxLora* lora) {
  return dtype == LPX_BF16 ? Step<Half>::linear_scratch(linear, num_rows, lora)
                           : Step<Float>::linear_scratch(linear, num_rows, lora);
}
void linear(LpxTeam* team, int64_t, const LpxLinear* linear, int32_t dtype, int64_t num_rows, const float* x,
            const float* norm, float norm_eps, const LpxLora* lora, float* out, void* scratch) {
  if (dtype == LPX_BF16) Step<Half>::one_linear(team, linear, num_rows, x, norm, norm_eps, lora, out, scratch);
  else Step<Float>::one_linear(team, linear, num_rows, x, norm, norm_eps, lora, out, scratch);
}
int64_t attention_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
  return model->dtype == LPX_BF16 ? Step<Half>::attention_scratch(model, batch, num_threads)
                                  : Step<Float>::attention_scratch(model, batch, num_threads);
}
void attention(LpxTeam* team, int64_t thread, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch,
               int64_t layer, float* qkv, float* out, void* scratch) {
  if (model->dtype == LPX_BF16)
    Step<Half>::one_attention(team, thread, model, cache, batch, layer, qkv, out, scratch);
  else Step<Float>::one_attention(team, thread, model, cache, batch, layer, qkv, out, scratch);
}

}  // namespace

extern "C" const LpxKernels lpx_kernels;
extern "C" const LpxKernels lpx_kernels = {
    packed_elements_of, pack_of, layers_scratch, layers, linear_scratch, linear, attention_scratch, attention,
};
