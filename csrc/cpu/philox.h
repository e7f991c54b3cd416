// Random numbers of the package: Philox4x32-10 and the step from its words to standard normals.
//
// Contract (docs/mathematics, "Random numbers"), the same integers on every back end:
//   key      64-bit seed, low word first
//   counter  c0 = column quad j / 4, c1 = global row, c2 = step, c3 = stream
//   uniform  u = (word + 1/2) 2^-32
//   normals  Box-Muller on words (0, 1) and (2, 3):  z0 = r cos(2 pi u2), z1 = r sin(2 pi u2), r = sqrt(-2 ln u1)
//
// Every function works on one lane, has no branch, no table and no library call but sqrt: a compiler vectorises a plain
// loop over lanes. (The Philox rounds are also instantiated with explicit vectors of words: compilers miss the
// 32 x 32 -> 64 bit multiply.)
// All functions have internal linkage, so a copy compiled for a wide instruction set never replaces a portable one.
#pragma once

#include <stdint.h>

#define ANSN_INLINE static inline __attribute__((always_inline, unused))

namespace ansn {

ANSN_INLINE uint32_t float_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

ANSN_INLINE float bits_float(uint32_t x) { return __builtin_bit_cast(float, x); }

// W is one word (uint32_t), or a vector of words of several lanes that has ^ and multiply_wide.
template <class W>
struct WordsOf {
  W w0, w1, w2, w3;
};
using Words = WordsOf<uint32_t>;

struct Normals {
  float z0, z1, z2, z3;
};

ANSN_INLINE void multiply_wide(uint32_t x, uint32_t constant, uint32_t& high, uint32_t& low) {
  const uint64_t product = (uint64_t)constant * x;
  high = (uint32_t)(product >> 32);
  low = (uint32_t)product;
}

template <class W>
ANSN_INLINE WordsOf<W> philox_round(WordsOf<W> c, uint32_t key0, uint32_t key1) {
  W high0, low0, high1, low1;
  multiply_wide(c.w0, 0xD2511F53u, high0, low0);
  multiply_wide(c.w2, 0xCD9E8D57u, high1, low1);
  return {high1 ^ c.w1 ^ key0, low1, high0 ^ c.w3 ^ key1, low0};
}

// Ten rounds (Salmon et al. 2011). The key schedule is the same for every lane, so it is hoisted out of a loop over lanes.
template <class W>
ANSN_INLINE WordsOf<W> philox4x32_10(uint64_t seed, WordsOf<W> c) {
  const uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  const uint32_t w0 = 0x9E3779B9u, w1 = 0xBB67AE85u;
  c = philox_round(c, k0, k1);
  c = philox_round(c, k0 + w0, k1 + w1);
  c = philox_round(c, k0 + 2u * w0, k1 + 2u * w1);
  c = philox_round(c, k0 + 3u * w0, k1 + 3u * w1);
  c = philox_round(c, k0 + 4u * w0, k1 + 4u * w1);
  c = philox_round(c, k0 + 5u * w0, k1 + 5u * w1);
  c = philox_round(c, k0 + 6u * w0, k1 + 6u * w1);
  c = philox_round(c, k0 + 7u * w0, k1 + 7u * w1);
  c = philox_round(c, k0 + 8u * w0, k1 + 8u * w1);
  c = philox_round(c, k0 + 9u * w0, k1 + 9u * w1);
  return c;
}

// r = sqrt(-2 ln u), u = (word + 1/2) 2^-32.
// float32 cannot hold u near 1, where r loses all its digits (u = 1 - 2^-25 has r = 2.4e-4, its float32 neighbour 0).
// The complement is exact in integers: 1 - u = (~word + 1/2) 2^-32 = s. So s is formed from the smaller of word and
// ~word, which also fits a signed conversion (the only one before AVX-512), and ln(1 - s) is taken from s itself.
ANSN_INLINE float box_muller_radius(uint32_t word) {
  const uint32_t complement = ~word;
  const uint32_t small = word < complement ? word : complement;
  const float s = (float)(int32_t)small * 2.3283064365386963e-10f + 1.1641532182693481e-10f;  // 2^-32, 2^-33: (0, 1/2]
  const float u = word < complement ? s : 1.0f - s;
  // u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))
  const int32_t shifted = (int32_t)(float_bits(u) - 0x3F3504F3u);
  const int32_t exponent = shifted >> 23;
  const float mantissa = bits_float(float_bits(u) - ((uint32_t)exponent << 23));
  const float f = u > 0.70710677f ? -s : mantissa - 1.0f;
  // -2 ln(1 + f) / f on that interval, relative error 2e-7
  float p = 0.197907016f;
  p = p * f - 0.322524965f;
  p = p * f + 0.345564127f;
  p = p * f - 0.398266971f;
  p = p * f + 0.499378145f;
  p = p * f - 0.666692138f;
  p = p * f + 1.00000751f;
  p = p * f - 1.99999988f;
  return __builtin_sqrtf(p * f + (float)exponent * -1.3862944f);  // 2 ln 2 = 1.3862944
}

// (r cos, r sin) of the angle 2 pi (word + 1/2) 2^-32.
// The angle is taken to the nearest half turn, which flips the sign of both; what is left is an exact integer and at most
// a quarter turn, where two short polynomials hold. No exchange of sine and cosine, no large argument.
ANSN_INLINE void box_muller_rotate(uint32_t word, float r, float& along, float& across) {
  const uint32_t half_turn = (word + 0x40000000u) & 0x80000000u;
  const int32_t rest = (int32_t)(word - half_turn);
  const float angle = (float)rest * 1.4629180792671596e-9f + 7.314590396335798e-10f;  // 2 pi 2^-32, and half of it
  const float y = angle * angle;
  float sine = 2.60510774e-06f;
  sine = sine * y - 0.000198090172f;
  sine = sine * y + 0.00833304971f;
  sine = sine * y - 0.166666582f;
  sine = sine * y + 1.0f;
  float cosine = 2.31524173e-05f;
  cosine = cosine * y - 0.00138536294f;
  cosine = cosine * y + 0.0416635722f;
  cosine = cosine * y - 0.499999046f;
  cosine = cosine * y + 0.99999994f;
  const float signed_r = bits_float(float_bits(r) ^ half_turn);
  along = signed_r * cosine;
  across = signed_r * (sine * angle);
}

// Four standard normals from one counter block; within 1e-5 of the float64 formula for every word, and always finite.
ANSN_INLINE Normals normals_from_words(Words w) {
  Normals z;
  box_muller_rotate(w.w1, box_muller_radius(w.w0), z.z0, z.z1);
  box_muller_rotate(w.w3, box_muller_radius(w.w2), z.z2, z.z3);
  return z;
}

}  // namespace ansn
