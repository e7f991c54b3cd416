// Element types as they lie in memory: load, compute in the wider type that it gives, round on store.
// bfloat16 and float16 are converted with integer arithmetic, which vectorises on every instruction set and does not
// depend on the flush-to-zero mode of the thread.
#pragma once

#include "philox.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

struct F32 {
  using Memory = float;
  ANSN_INLINE float load(float v) { return v; }
  ANSN_INLINE float store(float v) { return v; }
};

struct F64 {
  using Memory = double;
  ANSN_INLINE double load(double v) { return v; }
  ANSN_INLINE double store(double v) { return v; }
};

struct BF16 {
  using Memory = uint16_t;
  ANSN_INLINE float load(uint16_t v) { return bits_float((uint32_t)v << 16); }
  ANSN_INLINE uint16_t store(float v) {
    const uint32_t bits = float_bits(v);
    const uint32_t nearest_even = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return (uint16_t)(nan ? 0x7FC0u : nearest_even);
  }
};

struct F16 {
  using Memory = uint16_t;
  ANSN_INLINE float load(uint16_t v) {
    const uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    const uint32_t magnitude = v & 0x7FFFu;
    const float subnormal = (float)(int32_t)magnitude * 5.9604644775390625e-8f;  // 2^-24
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t special = (magnitude << 13) | 0x7F800000u;
    uint32_t bits = magnitude < 0x400u ? float_bits(subnormal) : normal;
    bits = magnitude >= 0x7C00u ? special : bits;
    return bits_float(bits | sign);
  }
  ANSN_INLINE uint16_t store(float v) {
    const uint32_t bits = float_bits(v);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    // adding 1/2 leaves the value in units of 2^-24, rounded to nearest even by the adder itself
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u;
    const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x47800000u ? 0x7C00u : half;
    half = magnitude > 0x7F800000u ? 0x7E00u : half;
    return (uint16_t)(half | sign);
  }
};

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
