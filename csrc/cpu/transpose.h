// Small copies that turn a matrix or change its element type, by blocks of 4 x 4 in 16-byte vectors.
#pragma once

#include "storage.h"

// The elements of vectors a and b that the constants say, b's counted from a's length on. Index: a vector of integers as
// wide as theirs.
#if defined(__clang__)
#define ANSN_SHUFFLE(Index, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ANSN_SHUFFLE(Index, a, b, ...) __builtin_shuffle(a, b, (Index){__VA_ARGS__})
#endif

namespace ansn {
namespace ANSN_ISA {
namespace {

struct Four {
  typedef float Vector __attribute__((vector_size(16)));
  typedef int32_t Index __attribute__((vector_size(16)));
  typedef float Unaligned __attribute__((vector_size(16), aligned(4), may_alias));
};

// to[j, i] = from[i, j], 4 x 4; strides in elements.
inline void transpose_4x4(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  const Four::Vector a = *(const Four::Unaligned*)from, b = *(const Four::Unaligned*)(from + ld_from);
  const Four::Vector c = *(const Four::Unaligned*)(from + 2 * ld_from), d = *(const Four::Unaligned*)(from + 3 * ld_from);
  const Four::Vector ab = ANSN_SHUFFLE(Four::Index, a, b, 0, 4, 1, 5), cd = ANSN_SHUFFLE(Four::Index, c, d, 0, 4, 1, 5);
  const Four::Vector ba = ANSN_SHUFFLE(Four::Index, a, b, 2, 6, 3, 7), dc = ANSN_SHUFFLE(Four::Index, c, d, 2, 6, 3, 7);
  *(Four::Unaligned*)to = ANSN_SHUFFLE(Four::Index, ab, cd, 0, 1, 4, 5);
  *(Four::Unaligned*)(to + ld_to) = ANSN_SHUFFLE(Four::Index, ab, cd, 2, 3, 6, 7);
  *(Four::Unaligned*)(to + 2 * ld_to) = ANSN_SHUFFLE(Four::Index, ba, dc, 0, 1, 4, 5);
  *(Four::Unaligned*)(to + 3 * ld_to) = ANSN_SHUFFLE(Four::Index, ba, dc, 2, 3, 6, 7);
}

// to[j, i] = from[i, j] for `rows` x `cols` of from, both multiples of 4.
void transpose(const float* from, int64_t ld_from, int64_t rows, int64_t cols, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; i += 4)
    for (int64_t j = 0; j < cols; j += 4) transpose_4x4(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
}

template <class A>
void load_row(const typename A::Memory* from, int64_t count, float* __restrict__ to) {
  for (int64_t k = 0; k < count; ++k) to[k] = (float)A::load(from[k]);
}

// to[j, i] = from[i, j] for any `rows` x `cols` of from.
template <class A>
void load_transposed(const typename A::Memory* from, int64_t ld_from, int64_t rows, int64_t cols, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) to[j * ld_to + i] = (float)A::load(from[i * ld_from + j]);
}

template <>
void load_transposed<F32>(const float* from, int64_t ld_from, int64_t rows, int64_t cols, float* to, int64_t ld_to) {
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4)
    for (int64_t j = 0; j < whole_cols; j += 4) transpose_4x4(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) to[j * ld_to + i] = from[i * ld_from + j];
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
