// The elementwise coloured step (L the identity or diagonal), one pass over memory with the noise made inside:
//
//     out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z)
//
// Work is cut along the flat list of column quads of all rows, so that few long rows and many short ones use the threads
// and the vectors equally well. A tile is kTileLanes quads: their normals go to a buffer in the first-level cache, then
// each stretch of one row that the tile covers is combined. A tile does not depend on the number of threads, so neither
// does the result.
#pragma once

#include "kernels.h"
#include "noise.h"
#include "storage.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

constexpr int64_t kSerialElements = 16384;  // below this, waking a second thread costs more than it saves

// Where x is absent; zero in every storage format, and as long as the longest stretch.
alignas(64) const float kZeros[4 * kTileLanes] = {};

template <class S>
struct Stretch {  // columns of one row
  typename S::Memory* out;
  const typename S::Memory *x, *D, *f;
  const float* z;
  const float* diag;
  float c, a, b;
  int64_t count;
};

template <class S, bool kD, bool kF, bool kZ, bool kDiag>
void combine(const Stretch<S>& s) {
  typename S::Memory* out = s.out;  // may equal x: each element is read before it is written
  const typename S::Memory *x = s.x, *D = s.D, *f = s.f;
  const float* z = s.z;
  const float* diag = s.diag;
  const float c = s.c, a = s.a, b = s.b;
  ANSN_INDEPENDENT
  for (int64_t j = 0; j < s.count; ++j) {
    const float here = S::load(x[j]);
    float result = here;
    if (kD) result += c * (S::load(D[j]) - here);
    if (kF || kZ) {
      float push = 0;
      if (kF) push = a * S::load(f[j]);
      if (kZ) push += b * z[j];
      if (kDiag) push *= diag[j];
      result += push;
    }
    out[j] = S::store(result);
  }
}

template <class S>
using Combine = void (*)(const Stretch<S>&);

template <class S>
Combine<S> choose_combine(bool D, bool f, bool z, bool diag) {
  static constexpr Combine<S> table[16] = {
      combine<S, 0, 0, 0, 0>, combine<S, 0, 0, 0, 1>, combine<S, 0, 0, 1, 0>, combine<S, 0, 0, 1, 1>,
      combine<S, 0, 1, 0, 0>, combine<S, 0, 1, 0, 1>, combine<S, 0, 1, 1, 0>, combine<S, 0, 1, 1, 1>,
      combine<S, 1, 0, 0, 0>, combine<S, 1, 0, 0, 1>, combine<S, 1, 0, 1, 0>, combine<S, 1, 0, 1, 1>,
      combine<S, 1, 1, 0, 0>, combine<S, 1, 1, 0, 1>, combine<S, 1, 1, 1, 0>, combine<S, 1, 1, 1, 1>};
  return table[8 * D + 4 * f + 2 * z + diag];
}

// z of the flat quads [first, last), four for each.
void quad_normals(const cpu::ColoredStep& p, int64_t row_quads, int64_t first, int64_t last, float* z) {
  Lanes at;
  int64_t r = first / row_quads, q = first % row_quads, lane = 0;
  const int64_t lanes = last - first;
  while (lane < lanes) {
    const int64_t room = lanes - lane, left = row_quads - q, run = room < left ? room : left;
    const uint32_t global_row = p.row0 + (uint32_t)r;
    for (int64_t l = 0; l < run; ++l) {
      at.quad[lane + l] = (uint32_t)(q + l);
      at.row[lane + l] = global_row;
    }
    lane += run;
    q = 0;
    ++r;
  }
  for (; lane < whole_groups(lanes); ++lane) at.quad[lane] = at.row[lane] = 0;  // computed with the group, never used
  TileWords words;
  lane_words(p.seed, at, p.step, p.stream, lanes, words);
  tile_normals(words, lanes, z);
}

template <class S>
struct Step {
  const cpu::ColoredStep& p;
  Combine<S> combine;
  bool noise;
  bool flat;  // short rows, one coefficient for all: rows then need not be told apart
  int64_t row_quads;
};

template <class S>
Step<S> plan_step(const cpu::ColoredStep& p) {
  const bool scalar = p.c_stride == 0 && p.a_stride == 0 && p.b_stride == 0 && !p.diag;
  return {p, choose_combine<S>(p.D && p.c, p.f && p.a, p.b != nullptr, p.diag != nullptr), p.b != nullptr,
          scalar && p.cols <= 64, (p.cols + 3) / 4};
}

// `count` columns of row r from column j on.
template <class S>
Stretch<S> stretch(const cpu::ColoredStep& p, int64_t r, int64_t j, int64_t count, const float* z) {
  using M = typename S::Memory;
  const int64_t at = r * p.cols + j;
  Stretch<S> s;
  s.out = (M*)p.out + at;
  s.x = p.x ? (const M*)p.x + at : (const M*)kZeros;
  s.D = p.D ? (const M*)p.D + at : nullptr;
  s.f = p.f ? (const M*)p.f + at : nullptr;
  s.z = z;
  s.diag = p.diag ? p.diag + (p.region ? p.region[r] : 0) * p.cols + j : nullptr;
  s.c = p.c ? p.c[r * p.c_stride] : 0;
  s.a = p.a ? p.a[r * p.a_stride] : 0;
  s.b = p.b ? p.b[r * p.b_stride] : 0;
  s.count = count;
  return s;
}

// Whole tile as one stretch. Normals beyond a row's last column are squeezed out: each quad is copied whole, and the next
// one overwrites what was too much.
template <class S>
void flat_tile(const Step<S>& step, int64_t first, int64_t last, float* z) {
  const int64_t cols = step.p.cols, row_quads = step.row_quads;
  const int64_t r = first / row_quads, j = first % row_quads * 4;
  const int64_t tail = cols - 4 * (row_quads - 1);  // columns in a row's last quad
  int64_t count = 0, q = first % row_quads;
  if (tail == 4) {
    count = 4 * (last - first);
  } else {
    for (int64_t lane = 0; lane < last - first; ++lane) {
      if (step.noise) __builtin_memmove(z + count, z + 4 * lane, 4 * sizeof(float));
      const bool ends_row = ++q == row_quads;
      count += ends_row ? tail : 4;
      q = ends_row ? 0 : q;
    }
  }
  step.combine(stretch<S>(step.p, r, j, count, z));
}

template <class S>
void tile(const Step<S>& step, int64_t first, int64_t last) {
  alignas(64) float z[4 * kTileLanes];
  if (step.noise) quad_normals(step.p, step.row_quads, first, last, z);
  if (step.flat) return flat_tile(step, first, last, z);
  int64_t r = first / step.row_quads, q = first % step.row_quads, lane = 0;
  const int64_t lanes = last - first, cols = step.p.cols;
  while (lane < lanes) {
    const int64_t room = lanes - lane, left = step.row_quads - q, run = room < left ? room : left;
    const int64_t end = 4 * (q + run);
    step.combine(stretch<S>(step.p, r, 4 * q, (end < cols ? end : cols) - 4 * q, z + 4 * lane));
    lane += run;
    q = 0;
    ++r;
  }
}

template <class S>
void colored_step_in(const cpu::ColoredStep& p) {
  const Step<S> step = plan_step<S>(p);
  const int64_t quads = p.rows * step.row_quads;
  const int64_t tiles = (quads + kTileLanes - 1) / kTileLanes;
  const int threads = p.rows * p.cols < kSerialElements ? 1 : p.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * kTileLanes, last = first + kTileLanes;
    tile<S>(step, first, last < quads ? last : quads);
  }
}

void colored_step(const cpu::ColoredStep& p) {
  if (p.rows <= 0 || p.cols <= 0) return;
  switch (p.storage) {
    case cpu::Storage::f32: return colored_step_in<F32>(p);
    case cpu::Storage::bf16: return colored_step_in<BF16>(p);
    case cpu::Storage::f16: return colored_step_in<F16>(p);
    case cpu::Storage::f64: return;  // the binding refuses it
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
