// Threads that share the phases of one call.
//
// A phase is a number of chunks. Threads take chunks by counting up; a phase ends when its chunks are done, not when
// its threads are there, so a thread that the system has put aside holds nobody up unless it holds a chunk.
#pragma once
#include <immintrin.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) LpxPhase {
  int32_t next, done, sleepers;
};

struct LpxTeam {
  LpxPhase* phases;
  int64_t num_threads;
};

namespace {

constexpr int kSpins = 600;  // some 10 microseconds: the usual gap between two threads that end a phase

inline void futex_wait(int32_t* word, int32_t seen) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr); }
inline void futex_wake(int32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX); }

inline void wait_for(LpxPhase* phase, int32_t num_chunks) {
  for (int i = 0; i < kSpins; ++i) {
    if (__atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) == num_chunks) return;
    _mm_pause();
  }
  __atomic_fetch_add(&phase->sleepers, 1, __ATOMIC_SEQ_CST);
  for (int32_t done; (done = __atomic_load_n(&phase->done, __ATOMIC_SEQ_CST)) != num_chunks;)
    futex_wait(&phase->done, done);
}

// One thread's way through the phases of a call: every thread walks the same phases in the same order.
struct Walk {
  LpxTeam* team;
  LpxPhase* phase;

  Walk(LpxTeam* owner) : team(owner), phase(owner->phases) {}

  // Run body(chunk, the chunk that this thread takes next or num_chunks) for the thread's share, then wait for the rest.
  template <class Body>
  void run(int64_t num_chunks, const Body& body) {
    if (num_chunks <= 0) return;
    LpxPhase* own = phase++;
    const int32_t count = static_cast<int32_t>(num_chunks);
    int32_t chunk = take(own);
    while (chunk < count) {
      const int32_t next = take(own);
      body(chunk, next < count ? next : count);
      finish(own, count);
      chunk = next;
    }
    if (team->num_threads > 1) wait_for(own, count);
  }

 private:
  int32_t take(LpxPhase* own) {
    if (team->num_threads == 1) return own->next++;
    if (__atomic_load_n(&own->next, __ATOMIC_RELAXED) > INT32_MAX / 2) return INT32_MAX;
    return __atomic_fetch_add(&own->next, 1, __ATOMIC_RELAXED);
  }
  void finish(LpxPhase* own, int32_t count) {
    if (team->num_threads == 1) return;
    const int32_t done = __atomic_add_fetch(&own->done, 1, __ATOMIC_SEQ_CST);
    if (done == count && __atomic_load_n(&own->sleepers, __ATOMIC_SEQ_CST)) futex_wake(&own->done);
  }
};

}  // namespace
