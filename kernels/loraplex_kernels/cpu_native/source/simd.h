// One vector of floats, its width decided by the instruction set that this file is compiled for.
// LPX_LEVEL: 1 = AVX2 + FMA, 2 = AVX-512 (F, BW, VL, DQ), 3 = the same with AVX512-BF16.
//
// Everything here and in the headers that build on it has internal linkage, and nothing of the C++ library is used, so
// that no function compiled for this level can replace one that runs before the level is checked.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "abi.h"

namespace {

using bf16 = uint16_t;

#if LPX_LEVEL >= 2

constexpr int W = 16;
constexpr int kTileRows = 8;
using vf = __m512;
inline vf zero() { return _mm512_setzero_ps(); }
inline vf set1(float x) { return _mm512_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf maximum(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf minimum(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf round_even(vf a) { return _mm512_roundscale_ps(a, 8); }
inline vf power_of_two(vf n) {  // 2**n, n whole and within -126 .. 127
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline float sum(vf a) { return _mm512_reduce_add_ps(a); }
inline float largest(vf a) { return _mm512_reduce_max_ps(a); }
inline vf sums_of(const vf* a) {  // element j is the sum of a[j]
  vf pairs[8], fours[4], halves[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] = add(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d even = _mm512_castps_pd(pairs[2 * i]), odd = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)), _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd)));
  }
  for (int i = 0; i < 2; ++i)
    halves[i] = add(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                    _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  return add(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}
// Of 32 results whose even groups of four lie in one vector and the odd ones in the other: the first and second half.
inline void in_order(vf* low, vf* high) {
  const __m512i head = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const vf result = _mm512_permutex2var_ps(*low, head, *high);
  *high = _mm512_permutex2var_ps(*low, _mm512_add_epi32(head, _mm512_set1_epi32(8)), *high);
  *low = result;
}
inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline vf load(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline vf load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline vf load_first(const bf16* p, int n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}
inline __m256i narrowed(vf a) {
#if LPX_LEVEL >= 3
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(up);
#endif
}
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
inline void store(bf16* p, vf a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(a)); }
inline void store_first(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
inline void store_first(bf16* p, vf a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrowed(a)); }

#else

constexpr int W = 8;
constexpr int kTileRows = 4;
using vf = __m256;
inline vf zero() { return _mm256_setzero_ps(); }
inline vf set1(float x) { return _mm256_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf maximum(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf minimum(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf round_even(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf power_of_two(vf n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline float sum(vf a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float largest(vf a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline vf sums_of(const vf* a) {
  vf pairs[4], fours[2];
  for (int i = 0; i < 4; ++i)
    pairs[i] = add(_mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  for (int i = 0; i < 2; ++i) {
    const __m256d even = _mm256_castps_pd(pairs[2 * i]), odd = _mm256_castps_pd(pairs[2 * i + 1]);
    fours[i] = add(_mm256_castpd_ps(_mm256_unpacklo_pd(even, odd)), _mm256_castpd_ps(_mm256_unpackhi_pd(even, odd)));
  }
  return add(_mm256_permute2f128_ps(fours[0], fours[1], 0x20), _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}
inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline vf load(const bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
inline void store(bf16* p, vf a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0), is_nan);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
template <class T>
inline vf load_first(const T* p, int n) {
  T whole[W] = {};
  memcpy(whole, p, sizeof(T) * n);
  return load(whole);
}
template <class T>
inline void store_first(T* p, vf a, int n) {
  T whole[W];
  store(whole, a);
  memcpy(p, whole, sizeof(T) * n);
}

#endif

// The n leading elements, n of any size above 0.
template <class T>
inline vf load_up_to(const T* p, int64_t n) { return n >= W ? load(p) : load_first(p, static_cast<int>(n)); }
template <class T>
inline void store_up_to(T* p, vf a, int64_t n) {
  if (n >= W) store(p, a);
  else store_first(p, a, static_cast<int>(n));
}

// e**x by x = n ln 2 + r, a polynomial of degree 6 in r; relative error below 2e-7. Below -87 it is e**-87, not 0.
// The operand order of minimum and maximum lets NaN through: an instruction gives its second operand where one is NaN.
inline vf exponential(vf x) {
  x = maximum(set1(-87.0f), minimum(set1(88.0f), x));
  const vf n = round_even(mul(x, set1(1.44269504088896341f)));
  const vf r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  vf p = fma(r, set1(1.0f / 720), set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return mul(p, power_of_two(n));
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
