// What bounds the batched rank-1 update: the kernel beside the same traffic without arithmetic, one thread, nanoseconds
// a region of 64 x 64 float32, 16 KB: 32 of them stay in a second-level cache, 1024 in a last one of 32 MB, 8192 in
// neither. All patterns take turns; the best and the median of the rounds are printed.
//
// g++ -O3 -march=x86-64-v4 -mprefer-vector-width=512 -std=gnu++17 -fopenmp benchmarks/rank_one_bound.cpp -o build/bound
// build/bound
//
// (-march=x86-64-v3 -DANSN_VECTOR_BYTES=32 without AVX-512.)
#define ANSN_ISA bound
#if !defined(ANSN_VECTOR_BYTES)
#define ANSN_VECTOR_BYTES 64
#endif
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "../csrc/cpu/covariance_update.h"

namespace {

using namespace ansn;
using namespace ansn::bound;

constexpr int64_t kDim = 64, kLine = 16, kRegion = kDim * kDim;
volatile int64_t unfolded_dim = kDim;  // the kernel's triangles do not know d when they are compiled
typedef float Line __attribute__((vector_size(64)));

struct State {
  int64_t regions;
  float *scatter, *mean, *x;
  std::vector<double> weight, weight2;
  std::vector<int64_t> starts, order;
  void* scratch;

  explicit State(int64_t K) : regions(K), weight(K, 1000.0), weight2(K, 1000.0), starts(K + 1), order(K) {
    const auto floats = [](int64_t n) { return (float*)std::aligned_alloc(4096, (n * 4 + 4095) / 4096 * 4096); };
    scatter = floats((K + 8) * kRegion);  // the patterns fetch a few regions ahead
    mean = floats(K * kDim);
    x = floats(K * kDim);
    std::fill(scatter, scatter + (K + 8) * kRegion, 1.0f);
    for (int64_t i = 0; i < K * kDim; ++i) mean[i] = 0.0f, x[i] = 0.1f * (float)(i % 7);
    for (int64_t k = 0; k <= K; ++k) starts[k] = k;
    for (int64_t k = 0; k < K; ++k) order[k] = k;
    scratch = std::aligned_alloc(4096, K * 4096 + (1 << 20));
  }
  cpu::CovarianceUpdate update() {
    cpu::CovarianceUpdate p = {};
    p.weight = weight.data(), p.weight2 = weight2.data();
    p.mean = mean, p.scatter = scatter, p.x = x;
    p.x_storage = cpu::Storage::f32;
    p.rows = p.regions = regions, p.cols = p.ld_x = kDim;
    p.starts = starts.data(), p.order = order.data();
    p.decay = 1.0, p.threads = 1, p.scratch = scratch;
    return p;
  }
};

inline void touch(float* at) { *(Line*)at *= 0.999f; }

// The lines that a region's lower triangle lies in, row after row; fetch: those of the region after next meanwhile.
void touch_triangles(State& s, bool fetch) {
  for (int64_t k = 0; k < s.regions; ++k)
    for (int64_t i = 0; i < kDim; ++i)
      for (int64_t j = 0; j <= i; j += kLine) {
        float* at = s.scatter + k * kRegion + i * kDim + j;
        if (fetch) __builtin_prefetch(at + 2 * kRegion, 0, 2);
        touch(at);
      }
}

void touch_all(State& s, int64_t floats_each) {
  for (int64_t at = 0; at < s.regions * floats_each; at += kLine) touch(s.scatter + at);
}

void measure(int64_t K) {
  State s(K);
  const cpu::CovarianceUpdate p = s.update();
  const int64_t triangle = kDim * (kDim + kLine) / 2;  // floats in the lines of a triangle
  const std::pair<const char*, std::function<void()>> patterns[] = {
      {"the kernel", [&] { covariance_update(p); }},
      {"its triangles alone", [&] {
         const int64_t d = unfolded_dim;
         for (int64_t k = 0; k < K; ++k) triangle_of_rank<float>(1, s.scatter + k * d * d, d, s.x, 1.0f, 0, d);
       }},
      {"lines of the triangle, read and written", [&] { touch_triangles(s, false); }},
      {"the same, fetched two regions ahead", [&] { touch_triangles(s, true); }},
      {"as many lines, packed", [&] { touch_all(s, triangle); }},
      {"all lines of the matrix", [&] { touch_all(s, kRegion); }},
  };
  constexpr size_t kPatterns = sizeof(patterns) / sizeof(patterns[0]);
  std::vector<double> taken[kPatterns];
  const int repeats = (int)std::max<int64_t>(1, 512 / K), rounds = K > 4096 ? 15 : 200;
  for (int round = 0; round < rounds; ++round) {
    for (size_t a = 0; a < kPatterns; ++a) {
      if (K <= 4096) patterns[a].second();
      const auto start = std::chrono::steady_clock::now();
      for (int r = 0; r < repeats; ++r) patterns[a].second();
      const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
      taken[a].push_back(time.count() / (double)(repeats * K));
    }
  }
  for (size_t a = 0; a < kPatterns; ++a) {
    std::sort(taken[a].begin(), taken[a].end());
    std::printf("K = %4ld  %-42s best %7.0f  median %7.0f\n", (long)K, patterns[a].first, taken[a][0],
                taken[a][taken[a].size() / 2]);
  }
}

}  // namespace

int main() {
  for (const int64_t K : {32, 1024, 8192}) measure(K);
}
