// What crosses from Python. structures.py mirrors every struct; sizes are compared when the library is loaded.
#pragma once
#include <stdint.h>

enum { LPX_F32 = 0, LPX_BF16 = 1 };
enum { LPX_MAX_SITES = 3 };

// A base linear: up to three sites (q, k, v; gate, up; or one) that read one input and are packed one by one.
struct LpxLinear {
  const void* weights[LPX_MAX_SITES];
  const float* bias;  // of all sites, one after the other, or null
  int64_t out_features[LPX_MAX_SITES];  // 0 past the last site
  int64_t in_features;
};

// LPX_BIAS: scale * (B A x + vector). LPX_DORA: vector * W x + (1 + vector) * scale * B A x.
enum { LPX_PLAIN = 0, LPX_BIAS = 1, LPX_DORA = 2 };

// One adapter at one site. rank 0: it does not change the site.
struct LpxSite {
  const void* a;  // [rank, in_features]
  const void* b;  // [out_features, rank], packed
  const void* vector;  // [out_features], what the kind has beside A and B, or null
  float scale;
  uint16_t rank;  // small, so that a site stays half a cache line: every block of every linear looks at all of them
  uint8_t dtype, kind;
};
struct LpxGroup {
  LpxSite sites[LPX_MAX_SITES];
};

// The adapters of a step: as LoraBatch, but with the rows of each segment spelled out.
struct LpxLora {
  int64_t num_segments;
  const int32_t* starts;  // [num_segments + 1], into rows and row_weights
  const int32_t* rows;
  const float* row_weights;
  const int64_t* tables;  // [num_segments] addresses: of an adapter's LpxGroup for each (layer, group of sites)
};

struct LpxLayer {
  LpxLinear qkv, o, gate_up, down;
  const float* input_norm;
  const float* post_attention_norm;
  const float* q_norm;  // or null
  const float* k_norm;
  int64_t window;  // 0 = none
};

struct LpxModel {
  const LpxLayer* layers;
  int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
  float norm_eps;
  int32_t dtype;
};

struct LpxCache {
  void* storage;  // [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim] of the model's dtype
  int64_t num_layers, page_size, num_pages;
};

// Rows of one sequence; its pages are pages[first_page ..].
struct LpxSpan {
  int32_t start_row, num_rows, context_len, first_page;
};

struct LpxBatch {
  int64_t num_rows, num_spans, num_page_ids;
  const LpxSpan* spans;
  const int32_t* pages;
  const int64_t* slots;  // [num_rows]
  const float* cos;      // [num_rows, head_dim / 2]
  const float* sin;
  float* hidden;         // [num_rows, hidden_size], changed in place
  LpxLora lora;
};

struct LpxTeam;

// One instruction set's implementation. Each function runs on every thread of a team.
struct LpxKernels {
  int64_t (*packed_elements)(int32_t dtype, int64_t out_features, int64_t in_features);
  void (*pack)(int32_t dtype, const void* weight, int64_t out_features, int64_t in_features, void* out);
  int64_t (*layers_scratch)(const LpxModel*, const LpxBatch*, int64_t num_threads);
  void (*layers)(LpxTeam*, int64_t thread, const LpxModel*, const LpxCache*, const LpxBatch*, void* scratch);
  int64_t (*linear_scratch)(const LpxLinear*, int32_t dtype, int64_t num_rows, const LpxLora*);
  // out [num_rows, sum of out_features] = x W^T + bias + every segment's delta; x is float32 [num_rows, in_features],
  // root-mean-square normed with norm first where that is not null.
  void (*linear)(LpxTeam*, int64_t thread, const LpxLinear*, int32_t dtype, int64_t num_rows, const float* x,
                 const float* norm, float norm_eps, const LpxLora*, float* out, void* scratch);
  int64_t (*attention_scratch)(const LpxModel*, const LpxBatch*, int64_t num_threads);
  // Stores the keys and values of qkv float32 [num_rows, q + k + v], rotated here, and attends: out float32.
  void (*attention)(LpxTeam*, int64_t thread, const LpxModel*, const LpxCache*, const LpxBatch*, int64_t layer,
                    float* qkv, float* out, void* scratch);
};
