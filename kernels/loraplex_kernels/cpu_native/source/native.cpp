// The C interface: which instruction sets this machine has, the threads, and calls by level.
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "abi.h"
#include "team.h"

extern "C" const LpxKernels lpx_kernels;

namespace {

using Body = void (*)(LpxTeam*, int64_t thread, void* call);

// Threads that sleep between calls. One call runs at a time.
struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pid_t owner = 0;
  int64_t num_workers = 0;
  int32_t generation = 0;  // odd while a call is open; workers sleep on it
  int32_t inside = 0;      // workers that may read the call
  LpxTeam team = {};
  Body body = nullptr;
  void* call = nullptr;
};

Pool pool;

void* work(void* thread) {
  const int64_t index = reinterpret_cast<int64_t>(thread);
  int32_t last = 0;
  for (;;) {
    int32_t now;
    while ((now = __atomic_load_n(&pool.generation, __ATOMIC_SEQ_CST)) == last || now % 2 == 0)
      futex_wait(&pool.generation, now);
    last = now;
    // Announce first, then look again: a call that closed in between is not entered.
    __atomic_fetch_add(&pool.inside, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool.generation, __ATOMIC_SEQ_CST) == now && index < pool.team.num_threads)
      pool.body(&pool.team, index, pool.call);
    if (__atomic_sub_fetch(&pool.inside, 1, __ATOMIC_SEQ_CST) == 0) futex_wake(&pool.inside);
  }
  return nullptr;
}

// Gives the number of threads that there are, at most `wanted`. A child process of a fork starts its own.
int64_t hire(int64_t wanted) {
  if (pool.owner != getpid()) {
    pool.owner = getpid();
    pool.num_workers = 0;
    pool.inside = 0;
  }
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  while (pool.num_workers + 1 < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, &detached, work, reinterpret_cast<void*>(pool.num_workers + 1))) break;
    ++pool.num_workers;
  }
  pthread_attr_destroy(&detached);
  return wanted < pool.num_workers + 1 ? wanted : pool.num_workers + 1;
}

void leave_alone() {
  for (int32_t inside; (inside = __atomic_load_n(&pool.inside, __ATOMIC_SEQ_CST)) != 0;)
    futex_wait(&pool.inside, inside);
}

void run(int64_t num_threads, int64_t num_phases, LpxPhase* phases, Body body, void* call) {
  memset(phases, 0, sizeof(LpxPhase) * num_phases);
  if (num_threads <= 1) {
    LpxTeam alone = {phases, 1};
    return body(&alone, 0, call);
  }
  pthread_mutex_lock(&pool.mutex);
  // Fewer than asked for is well: the team's size stays what scratch was laid out for, and phases wait for chunks alone.
  hire(num_threads);
  pool.team = {phases, num_threads};
  pool.body = body;
  pool.call = call;
  __atomic_fetch_add(&pool.generation, 1, __ATOMIC_SEQ_CST);
  futex_wake(&pool.generation);
  body(&pool.team, 0, call);
  __atomic_fetch_add(&pool.generation, 1, __ATOMIC_SEQ_CST);
  leave_alone();
  pthread_mutex_unlock(&pool.mutex);
}

struct LayersCall {
  const LpxModel* model;
  const LpxCache* cache;
  const LpxBatch* batch;
  void* scratch;
};
struct LinearCall {
  const LpxLinear* linear;
  int32_t dtype;
  int64_t num_rows;
  const float *x, *norm;
  float norm_eps;
  const LpxLora* lora;
  float* out;
  void* scratch;
};
struct AttentionCall {
  const LpxModel* model;
  const LpxCache* cache;
  const LpxBatch* batch;
  int64_t layer;
  float *qkv, *out;
  void* scratch;
};

constexpr int64_t kLayerPhases = 12, kOtherPhases = 8;  // at most: see Step::layers, and the single operations

// Whether span i covers the next rows and its pages, all within the pool, hold its context.
bool fits(const LpxCache* cache, const LpxBatch* batch, int64_t i, int64_t next_row) {
  const LpxSpan& span = batch->spans[i];
  const int64_t stop = i + 1 < batch->num_spans ? batch->spans[i + 1].first_page : batch->num_page_ids;
  const int64_t room = (stop - span.first_page) * cache->page_size;
  if (span.start_row != next_row || span.num_rows < 1 || span.context_len < span.num_rows || span.context_len > room)
    return false;
  for (int64_t page = span.first_page; page < stop; ++page)
    if (batch->pages[page] < 0 || batch->pages[page] >= cache->num_pages) return false;
  return true;
}

int64_t phases_bytes(int64_t num_phases) { return num_phases * static_cast<int64_t>(sizeof(LpxPhase)); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// 0: none of the levels; else the highest.
int64_t lpx_level() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!wide) return 1;
  return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
}

// Sizes of the structs, in the order of structures.py.
void lpx_sizes(int64_t* out) {
  const int64_t sizes[] = {sizeof(LpxLinear), sizeof(LpxSite),  sizeof(LpxGroup), sizeof(LpxLora), sizeof(LpxLayer),
                           sizeof(LpxModel),  sizeof(LpxCache), sizeof(LpxSpan),  sizeof(LpxBatch)};
  memcpy(out, sizes, sizeof sizes);
}

int64_t lpx_packed_elements(int32_t dtype, int64_t out_features, int64_t in_features) {
  return lpx_kernels.packed_elements(dtype, out_features, in_features);
}

void lpx_pack(int32_t dtype, const void* weight, int64_t out_features, int64_t in_features, void* out) {
  lpx_kernels.pack(dtype, weight, out_features, in_features, out);
}

// Ask for huge pages; only a hint.
void lpx_advise_huge(void* address, int64_t num_bytes) {
  const uintptr_t first = (reinterpret_cast<uintptr_t>(address) + 4095) & ~uintptr_t{4095};
  const uintptr_t last = (reinterpret_cast<uintptr_t>(address) + num_bytes) & ~uintptr_t{4095};
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// The first span that does not fit; num_spans where rows are left over or a slot lies outside the pool; -1: all is well.
int64_t lpx_first_misfit(const LpxCache* cache, const LpxBatch* batch) {
  int64_t row = 0;
  for (int64_t i = 0; i < batch->num_spans; row += batch->spans[i++].num_rows)
    if (!fits(cache, batch, i, row)) return i;
  for (int64_t i = 0; i < batch->num_rows; ++i)
    if (batch->slots[i] < 0 || batch->slots[i] >= cache->num_pages * cache->page_size) return batch->num_spans;
  return row == batch->num_rows ? -1 : batch->num_spans;
}

int64_t lpx_layers_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
  return phases_bytes(model->num_layers * kLayerPhases + kOtherPhases) +
         lpx_kernels.layers_scratch(model, batch, num_threads);
}

void lpx_layers(int64_t num_threads, const LpxModel* model, const LpxCache* cache, const LpxBatch* batch,
                void* scratch) {
  const int64_t num_phases = model->num_layers * kLayerPhases + kOtherPhases;
  LayersCall call = {model, cache, batch, static_cast<char*>(scratch) + phases_bytes(num_phases)};
  run(num_threads, num_phases, static_cast<LpxPhase*>(scratch), [](LpxTeam* team, int64_t thread, void* given) {
    const LayersCall& c = *static_cast<LayersCall*>(given);
    lpx_kernels.layers(team, thread, c.model, c.cache, c.batch, c.scratch);
  }, &call);
}

int64_t lpx_linear_scratch(const LpxLinear* linear, int32_t dtype, int64_t num_rows,
                           const LpxLora* lora) {
  return phases_bytes(kOtherPhases) + lpx_kernels.linear_scratch(linear, dtype, num_rows, lora);
}

void lpx_linear(int64_t num_threads, const LpxLinear* linear, int32_t dtype, int64_t num_rows,
                const float* x, const float* norm, float norm_eps, const LpxLora* lora, float* out, void* scratch) {
  LinearCall call = {linear,   dtype, num_rows, x,
                     norm,  norm_eps, lora,  out,      static_cast<char*>(scratch) + phases_bytes(kOtherPhases)};
  run(num_threads, kOtherPhases, static_cast<LpxPhase*>(scratch), [](LpxTeam* team, int64_t thread, void* given) {
    const LinearCall& c = *static_cast<LinearCall*>(given);
    lpx_kernels.linear(team, thread, c.linear, c.dtype, c.num_rows, c.x, c.norm, c.norm_eps, c.lora, c.out,
                             c.scratch);
  }, &call);
}

int64_t lpx_attention_scratch(const LpxModel* model, const LpxBatch* batch, int64_t num_threads) {
  return phases_bytes(kOtherPhases) + lpx_kernels.attention_scratch(model, batch, num_threads);
}

void lpx_attention(int64_t num_threads, const LpxModel* model, const LpxCache* cache,
                   const LpxBatch* batch, int64_t layer, float* qkv, float* out, void* scratch) {
  AttentionCall call = {model, cache, batch,
                        layer, qkv,   out,   static_cast<char*>(scratch) + phases_bytes(kOtherPhases)};
  run(num_threads, kOtherPhases, static_cast<LpxPhase*>(scratch), [](LpxTeam* team, int64_t thread, void* given) {
    const AttentionCall& c = *static_cast<AttentionCall*>(given);
    lpx_kernels.attention(team, thread, c.model, c.cache, c.batch, c.layer, c.qkv, c.out, c.scratch);
  }, &call);
}

}  // extern "C"
#pragma GCC visibility pop
