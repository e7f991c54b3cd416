// Normals for many lanes at once. A lane is one counter block, that is four columns of one row.
#pragma once

#include "word_lanes.h"

#if defined(__clang__)
#define ANSN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define ANSN_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace ansn {
namespace ANSN_ISA {
namespace {

// Lanes are always computed in whole groups of this many: no remainder loop, so that a lane's bits never depend on where
// it falls in a batch. It is the widest vector of any instruction set.
constexpr int64_t kLaneGroup = 16;
constexpr int64_t kTileLanes = 128;  // lanes computed together; their words and normals stay in the first-level cache

struct Lanes {
  alignas(64) uint32_t quad[kTileLanes], row[kTileLanes];
};

struct TileWords {
  alignas(64) uint32_t w0[kTileLanes], w1[kTileLanes], w2[kTileLanes], w3[kTileLanes];
};

inline int64_t whole_groups(int64_t lanes) { return (lanes + kLaneGroup - 1) / kLaneGroup * kLaneGroup; }

// Words of the first `lanes` lanes, rounded up to whole groups.
void lane_words(uint64_t seed, const Lanes& at, uint32_t step, uint32_t stream, int64_t lanes, TileWords& out) {
  for (int64_t l = 0; l < whole_groups(lanes); l += WordLanes::kLanes) {
    const WordsOf<WordLanes> w = philox4x32_10<WordLanes>(
        seed, {WordLanes::load(at.quad + l), WordLanes::load(at.row + l), WordLanes::all(step), WordLanes::all(stream)});
    WordLanes::store(out.w0 + l, w.w0);
    WordLanes::store(out.w1 + l, w.w1);
    WordLanes::store(out.w2 + l, w.w2);
    WordLanes::store(out.w3 + l, w.w3);
  }
}

// z[4 l + i], rounded up to whole groups of lanes.
void tile_normals(const TileWords& w, int64_t lanes, float* __restrict__ z) {
  const int64_t count = whole_groups(lanes);
  for (int64_t l = 0; l < count; ++l) {
    const Normals n = normals_from_words({w.w0[l], w.w1[l], w.w2[l], w.w3[l]});
    z[4 * l + 0] = n.z0;
    z[4 * l + 1] = n.z1;
    z[4 * l + 2] = n.z2;
    z[4 * l + 3] = n.z3;
  }
}

// The rest serves tests: one row's words and normals, and Box-Muller on given words.

int64_t one_row_tile(int64_t first, int64_t quads, uint32_t row, Lanes& at, uint32_t quad0 = 0) {
  for (int64_t l = 0; l < kTileLanes; ++l) {
    at.quad[l] = quad0 + (uint32_t)(first + l);
    at.row[l] = row;
  }
  return quads - first < kTileLanes ? quads - first : kTileLanes;
}

void philox_words(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, uint32_t quad0, int64_t quads,
                  uint32_t* words) {
  Lanes at;
  TileWords w;
  for (int64_t first = 0; first < quads; first += kTileLanes) {
    const int64_t lanes = one_row_tile(first, quads, row, at, quad0);
    lane_words(seed, at, step, stream, lanes, w);
    uint32_t* to = words + 4 * first;
    for (int64_t l = 0; l < lanes; ++l) {
      to[4 * l + 0] = w.w0[l];
      to[4 * l + 1] = w.w1[l];
      to[4 * l + 2] = w.w2[l];
      to[4 * l + 3] = w.w3[l];
    }
  }
}

void normals(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, int64_t quads, float* z) {
  Lanes at;
  TileWords w;
  alignas(64) float tile[4 * kTileLanes];
  for (int64_t first = 0; first < quads; first += kTileLanes) {
    const int64_t lanes = one_row_tile(first, quads, row, at);
    lane_words(seed, at, step, stream, lanes, w);
    tile_normals(w, lanes, tile);
    __builtin_memcpy(z + 4 * first, tile, sizeof(float) * 4 * lanes);
  }
}

void normals_of_words(const uint32_t* words, int64_t quads, float* z) {
  TileWords w = {};
  alignas(64) float tile[4 * kTileLanes];
  for (int64_t first = 0; first < quads; first += kTileLanes) {
    const int64_t lanes = quads - first < kTileLanes ? quads - first : kTileLanes;
    const uint32_t* from = words + 4 * first;
    for (int64_t l = 0; l < lanes; ++l) {
      w.w0[l] = from[4 * l + 0];
      w.w1[l] = from[4 * l + 1];
      w.w2[l] = from[4 * l + 2];
      w.w3[l] = from[4 * l + 3];
    }
    tile_normals(w, lanes, tile);
    __builtin_memcpy(z + 4 * first, tile, sizeof(float) * 4 * lanes);
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
