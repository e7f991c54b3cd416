// Vectors of 32-bit words for the Philox rounds. Their one costly operation, the 32 x 32 -> 64 bit product of a whole
// vector, is an instruction on x86 (even lanes only: two of them and three shuffles) that GCC does not find in a plain loop;
// with AVX-512 it takes a 64-bit multiply of three times the cost instead. Elsewhere the lanes are one word wide.
#pragma once

#include "philox.h"

#if defined(__x86_64__) && !defined(ANSN_PORTABLE)
#include <immintrin.h>
#endif

namespace ansn {
namespace ANSN_ISA {
namespace {

#if defined(__x86_64__) && !defined(ANSN_PORTABLE)

struct WordLanes {
  static constexpr int kLanes = ANSN_VECTOR_BYTES / 4;
  typedef uint32_t Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
  typedef uint32_t Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(4), may_alias));
  Vector v;
  ANSN_INLINE WordLanes load(const uint32_t* from) { return {*(const Unaligned*)from}; }
  ANSN_INLINE WordLanes all(uint32_t word) { return {Vector{} + word}; }
  ANSN_INLINE void store(uint32_t* to, WordLanes words) { *(Unaligned*)to = words.v; }
};

ANSN_INLINE WordLanes operator^(WordLanes a, WordLanes b) { return {a.v ^ b.v}; }
ANSN_INLINE WordLanes operator^(WordLanes a, uint32_t b) { return {a.v ^ b}; }

// Products of the even lanes and, shifted down, of the odd ones; then high and low halves are interleaved again.
ANSN_INLINE void multiply_wide(WordLanes x, uint32_t constant, WordLanes& high, WordLanes& low) {
#if ANSN_VECTOR_BYTES == 64
  const __m512i a = (__m512i)x.v, m = _mm512_set1_epi32((int)constant);
  const __m512i even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  high.v = (WordLanes::Vector)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
  low.v = (WordLanes::Vector)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB);
#elif ANSN_VECTOR_BYTES == 32
  const __m256i a = (__m256i)x.v, m = _mm256_set1_epi32((int)constant);
  const __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  high.v = (WordLanes::Vector)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  low.v = (WordLanes::Vector)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
  const __m128i a = (__m128i)x.v, m = _mm_set1_epi32((int)constant);
  const __m128i even = _mm_mul_epu32(a, m), odd = _mm_mul_epu32(_mm_srli_epi64(a, 32), m);
  high.v = (WordLanes::Vector)_mm_blend_epi16(_mm_srli_epi64(even, 32), odd, 0xCC);
  low.v = (WordLanes::Vector)_mm_blend_epi16(even, _mm_slli_epi64(odd, 32), 0xCC);
#endif
}

#else

struct WordLanes {
  static constexpr int kLanes = 1;
  uint32_t v;
  ANSN_INLINE WordLanes load(const uint32_t* from) { return {*from}; }
  ANSN_INLINE WordLanes all(uint32_t word) { return {word}; }
  ANSN_INLINE void store(uint32_t* to, WordLanes words) { *to = words.v; }
};

ANSN_INLINE WordLanes operator^(WordLanes a, WordLanes b) { return {a.v ^ b.v}; }
ANSN_INLINE WordLanes operator^(WordLanes a, uint32_t b) { return {a.v ^ b}; }

ANSN_INLINE void multiply_wide(WordLanes x, uint32_t constant, WordLanes& high, WordLanes& low) {
  ansn::multiply_wide(x.v, constant, high.v, low.v);
}

#endif

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
