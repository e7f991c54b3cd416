// The coloured step with a dense factor A (L or L^T, triangular or full):
//
//     out[r, :] = x + c_r (D - x) + A y_r,   y_r = a_r f + b_r z
//
// A triangular product for few rows and many columns, with the noise made inside. y is made once and packed into panels of
// kWidth rows, column after column (see dense_product.h). A is read from where it lies, kRows rows by kDepth columns at a
// time, once for up to kBlockRows rows of the batch; what lies across its diagonal is skipped. The sums are kept
// transposed, group after group of kGroup columns, until the group is turned and combined with x and D.
//
// An element's products are summed in a fixed order, column after column within blocks of kDepth, whatever rows it shares a
// panel with and however many threads there are: a thread owns whole groups.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "colored_step.h"
#include "dense_product.h"
#include "kernels.h"
#include "noise.h"
#include "storage.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace dense {

constexpr int64_t kGroup = 64;       // columns of out that are finished together: whole cache lines
constexpr int64_t kBlockRows = 240;  // whole panels of every width
constexpr int64_t kSerialProducts = 1 << 19;  // below this, waking a second thread costs more than it saves

static_assert(kDepth % kGroup == 0, "a group meets its first columns in one block");

struct Block {  // rows [first, first + count) of the order, all of one region
  int64_t region, first, count;
};

struct Plan {
  int64_t blocks = 0, panels, groups, padded;  // panels: of the largest block; padded: cols rounded up to whole tiles
  int threads;
  bool whole_blocks;  // many blocks: a thread takes whole ones; else all threads share each

  explicit Plan(const cpu::DenseStep& p) {
    int64_t largest = 0;
    for (int64_t k = 0; k < p.regions; ++k) {
      const int64_t count = p.region_first ? p.region_first[k + 1] - p.region_first[k] : p.step.rows;
      blocks += divide_up(count, kBlockRows);
      largest = most(largest, count);
    }
    panels = divide_up(least(largest, kBlockRows), kWidth);
    groups = divide_up(p.step.cols, kGroup);
    padded = groups * kGroup;
    threads = p.step.rows * p.step.cols * p.step.cols < kSerialProducts ? 1 : p.step.threads;
    whole_blocks = threads == 1 || blocks >= 4 * threads;
  }
  int64_t work_floats() const { return 2 * panels * kWidth * padded; }
  int64_t head_bytes() const { return divide_up(blocks * (int64_t)sizeof(Block), 64) * 64; }
  int64_t bytes() const { return head_bytes() + (whole_blocks ? threads : 1) * work_floats() * (int64_t)sizeof(float); }
};

struct Work {  // one block's memory
  float* y;     // [panels, padded, kWidth]
  float* sums;  // [groups, panels, kGroup, kWidth]
};

// What a thread does of a block: every `workers`-th piece from `worker` on.
struct Share {
  int worker, workers;
};

inline void barrier(const Share& share) {
  if (share.workers == 1) return;
#pragma omp barrier
}

inline int64_t row_of(const cpu::DenseStep& p, int64_t r) { return p.order ? p.order[r] : r; }

inline float coefficient(const float* values, int64_t stride, int64_t row) { return values ? values[row * stride] : 0.0f; }

// a_r f, or zero, for columns [first, first + kGroup) of one panel.
template <class S>
void pack_f(const cpu::DenseStep& p, const Block& block, int64_t r0, int64_t first, float* to) {
  alignas(64) float rows[kWidth][kGroup];
  const cpu::ColoredStep& s = p.step;
  const int64_t count = least(s.cols - first, kGroup);
  for (int64_t r = 0; r < kWidth; ++r) {
    int64_t j = 0;
    if (r0 + r < block.count) {
      const int64_t row = row_of(p, block.first + r0 + r);
      const typename S::Memory* f = (const typename S::Memory*)s.f + row * s.cols + first;
      const float a = coefficient(s.a, s.a_stride, row);
      float* __restrict__ here = rows[r];
      ANSN_INDEPENDENT
      for (int64_t k = 0; k < count; ++k) here[k] = a * S::load(f[k]);
      j = count;
    }
    for (; j < kGroup; ++j) rows[r][j] = 0;
  }
  transpose(rows[0], kGroup, kWidth, kGroup, to, kWidth);
}

// b_r z for columns [first, first + kGroup) of one panel, added to what is there or put in its place.
void pack_noise(const cpu::DenseStep& p, const Block& block, int64_t r0, int64_t first, bool add, float* to) {
  const cpu::ColoredStep& s = p.step;
  const int64_t rows = least(kWidth, block.count - r0), quads_at_once = kTileLanes / rows;
  alignas(64) float b[kWidth] = {}, z[4][kTileLanes + kWidth] = {};
  Lanes at = {};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = row_of(p, block.first + r0 + r);
    b[r] = coefficient(s.b, s.b_stride, row);
    for (int64_t q = 0; q < quads_at_once; ++q) at.row[q * rows + r] = s.row0 + (uint32_t)row;
  }
  const int64_t last = divide_up(least(first + kGroup, s.cols), 4);
  for (int64_t q0 = first / 4; q0 < last; q0 += quads_at_once) {
    const int64_t quads = least(quads_at_once, last - q0);
    for (int64_t q = 0; q < quads; ++q)
      for (int64_t r = 0; r < rows; ++r) at.quad[q * rows + r] = (uint32_t)(q0 + q);
    TileWords words;
    lane_words(s.seed, at, s.step, s.stream, quads * rows, words);
    const int64_t lanes = whole_groups(quads * rows);
    for (int64_t l = 0; l < lanes; ++l) {
      const Normals n = normals_from_words({words.w0[l], words.w1[l], words.w2[l], words.w3[l]});
      z[0][l] = n.z0;
      z[1][l] = n.z1;
      z[2][l] = n.z2;
      z[3][l] = n.z3;
    }
    // Rows beyond the batch's last take finite numbers times b = 0.
    for (int64_t q = 0; q < quads; ++q) {
      for (int64_t i = 0; i < 4; ++i) {
        float* __restrict__ y = to + (4 * (q0 + q) + i - first) * kWidth;
        const float* from = z[i] + q * rows;
        if (add) {
          for (int64_t r = 0; r < kWidth; ++r) y[r] += b[r] * from[r];
        } else {
          for (int64_t r = 0; r < kWidth; ++r) y[r] = b[r] * from[r];
        }
      }
    }
  }
}

// The columns of A in [k0, k0 + kDepth) that rows [i0, i0 + count) meet, and whether they are not the rows' first.
struct Range {
  int64_t first, last;
  bool add;
};

inline Range range_of(const cpu::DenseStep& p, int64_t i0, int64_t count, int64_t k0) {
  const int64_t low = p.triangle == cpu::Triangle::upper ? i0 : 0;
  const int64_t high = p.triangle == cpu::Triangle::lower ? least(i0 + count, p.step.cols) : p.step.cols;
  return {most(k0, low), least(k0 + kDepth, high), k0 > low};
}

// What columns [k0, k0 + kDepth) of A bring to one group.
template <class A>
void multiply_group(const cpu::DenseStep& p, const Block& block, const Work& work, const Plan& plan, int64_t g, int64_t k0) {
  const int64_t panels = divide_up(block.count, kWidth), end = least(p.step.cols, (g + 1) * kGroup);
  const typename A::Memory* factor = (const typename A::Memory*)p.factor + block.region * p.region_stride;
  float* group_sums = work.sums + g * plan.panels * kGroup * kWidth;
  if (block.count <= kFewRows) {
    for (int64_t i0 = g * kGroup; i0 < end; i0 += kStrip) {
      const Range k = range_of(p, i0, kStrip, k0);
      if (k.first >= k.last) continue;
      float* sums = group_sums + (i0 - g * kGroup) * kWidth;
      multiply_few_rows<A>(p, factor, i0, k.first, k.last, work.y + k.first * kWidth, block.count, k.add, sums);
    }
    return;
  }
  alignas(64) float slab[kRows * kSlabStride];
  for (int64_t i0 = g * kGroup; i0 < end; i0 += kRows) {
    const Range k = range_of(p, i0, kRows, k0);
    if (k.first >= k.last) continue;
    const int64_t depth = k.last - k.first;
    copy_slab<A>(p, factor, i0, k.first, k.last, slab);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* y = work.y + (panel * plan.padded + k.first) * kWidth;
      float* sums = group_sums + (panel * kGroup + i0 - g * kGroup) * kWidth;
      const int64_t rows = block.count - panel * kWidth;
      if (rows > 2 * kLanes) {
        multiply<3>(slab, y, depth, k.add, sums);
      } else if (rows > kLanes) {
        multiply<2>(slab, y, depth, k.add, sums);
      } else {
        multiply<1>(slab, y, depth, k.add, sums);
      }
    }
  }
}

// out of one group: the sums are turned, then x and D join.
template <class S>
void finish_group(const cpu::DenseStep& p, const Block& block, const Work& work, const Plan& plan, int64_t g) {
  alignas(64) float turned[kWidth][kGroup];
  const cpu::ColoredStep& s = p.step;
  const Combine<S> combine = choose_combine<S>(s.D && s.c, false, true, false);
  const int64_t j = g * kGroup, count = least(s.cols - j, kGroup);
  for (int64_t r0 = 0; r0 < block.count; r0 += kWidth) {
    const float* sums = work.sums + (g * plan.panels + r0 / kWidth) * kGroup * kWidth;
    transpose(sums, kWidth, kGroup, kWidth, turned[0], kGroup);
    for (int64_t r = 0; r < least(kWidth, block.count - r0); ++r) {
      const int64_t row = row_of(p, block.first + r0 + r);
      if (s.x) {
        Stretch<S> stretch_of_row = stretch<S>(s, row, j, count, turned[r]);
        stretch_of_row.b = 1;
        combine(stretch_of_row);
      } else {
        typename S::Memory* out = (typename S::Memory*)s.out + row * s.cols + j;
        for (int64_t k = 0; k < count; ++k) out[k] = S::store(turned[r][k]);
      }
    }
  }
}

// The group that comes `turn`-th, the costliest first, back and forth over the threads so that each gets the same work.
inline int64_t group_of(const cpu::DenseStep& p, const Plan& plan, const Share& share, int64_t round) {
  const int64_t place = round % 2 ? share.workers - 1 - share.worker : share.worker;
  const int64_t turn = round * share.workers + place;
  if (turn >= plan.groups) return -1;
  return p.triangle == cpu::Triangle::upper ? turn : plan.groups - 1 - turn;
}

template <class S, class A>
void run_block(const cpu::DenseStep& p, const Plan& plan, const Block& block, const Work& work, const Share& share) {
  const cpu::ColoredStep& s = p.step;
  const bool has_f = s.f && s.a, has_noise = s.b;
  const int64_t panels = divide_up(block.count, kWidth);
  for (int64_t t = share.worker; t < panels * plan.groups; t += share.workers) {
    const int64_t panel = t / plan.groups, first = t % plan.groups * kGroup;
    float* to = work.y + (panel * plan.padded + first) * kWidth;
    if (has_f) pack_f<S>(p, block, panel * kWidth, first, to);
    if (has_noise) pack_noise(p, block, panel * kWidth, first, has_f, to);
  }
  barrier(share);
  const int64_t rounds = divide_up(plan.groups, share.workers);
  for (int64_t k0 = 0; k0 < s.cols; k0 += kDepth) {
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t g = group_of(p, plan, share, round);
      if (g >= 0) multiply_group<A>(p, block, work, plan, g, k0);
    }
  }
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t g = group_of(p, plan, share, round);
    if (g >= 0) finish_group<S>(p, block, work, plan, g);
  }
  barrier(share);
}

template <class S, class A>
void run(const cpu::DenseStep& p) {
  const Plan plan(p);
  Block* blocks = (Block*)p.scratch;
  int64_t used = 0;
  for (int64_t k = 0; k < p.regions; ++k) {
    const int64_t first = p.region_first ? p.region_first[k] : 0;
    const int64_t last = p.region_first ? p.region_first[k + 1] : p.step.rows;
    for (int64_t r = first; r < last; r += kBlockRows) blocks[used++] = {k, r, least(kBlockRows, last - r)};
  }
  float* memory = (float*)((char*)p.scratch + plan.head_bytes());
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1)
  {
    Share share = {0, 1};
#if defined(_OPENMP)
    share = {omp_get_thread_num(), omp_get_num_threads()};
#endif
    float* own = memory + (plan.whole_blocks ? share.worker : 0) * plan.work_floats();
    const Work work = {own, own + plan.work_floats() / 2};
    if (plan.whole_blocks) {
      for (int64_t n = share.worker; n < used; n += share.workers) run_block<S, A>(p, plan, blocks[n], work, {0, 1});
    } else {
      for (int64_t n = 0; n < used; ++n) run_block<S, A>(p, plan, blocks[n], work, share);
    }
  }
}

template <class S>
void run_in(const cpu::DenseStep& p) {
  if (p.factor_storage == cpu::Storage::f64) return run<S, F64>(p);
  run<S, F32>(p);
}

}  // namespace dense

void dense_step(const cpu::DenseStep& p) {
  if (p.step.rows <= 0 || p.step.cols <= 0) return;
  switch (p.step.storage) {
    case cpu::Storage::f32: return dense::run_in<F32>(p);
    case cpu::Storage::bf16: return dense::run_in<BF16>(p);
    case cpu::Storage::f16: return dense::run_in<F16>(p);
    case cpu::Storage::f64: return;  // the bindings refuse it
  }
}

int64_t dense_scratch_bytes(const cpu::DenseStep& p) { return dense::Plan(p).bytes(); }

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
