// Many small Cholesky factors, one launch: the device's teams for csrc/small_cholesky.h.
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime_api.h>

#include "../small_cholesky.h"
#include "cholesky.h"

namespace ansn {
namespace cuda {
namespace {

using small_cholesky::Four;
using small_cholesky::Work;

// LANES threads: part of a warp, a warp, or the block.
template <int LANES>
struct ThreadTeam {
  static constexpr int kLanes = LANES;
  template <class T>
  struct PerLane {
    T value;
    __device__ __forceinline__ T& of(int) { return value; }
    __device__ __forceinline__ const T& any() const { return value; }
  };
  int thread;

  __device__ __forceinline__ int first() const { return 0; }
  __device__ __forceinline__ int last() const { return 1; }
  __device__ __forceinline__ int lane(int) const { return thread; }
  __device__ __forceinline__ void sync() const {
    if (LANES > 32)
      __syncthreads();
    else if (LANES == 32)
      __syncwarp();
    else
      __syncwarp(((1u << (LANES & 31)) - 1u) << (threadIdx.x % 32 / LANES * LANES));
  }
  // cp.async: from device to shared memory past the registers, so all of a lane's words are under way at once.
  __device__ __forceinline__ void copy_quad(Four* to, const float* from, bool aligned) const {
    if (aligned) {
      __pipeline_memcpy_async(to, from, 16);
    } else {
      for (int c = 0; c < 4; ++c) __pipeline_memcpy_async(&to->v[c], from + c, 4);
    }
  }
  __device__ __forceinline__ void copy_one(float* to, const float* from) const { __pipeline_memcpy_async(to, from, 4); }
  __device__ __forceinline__ void wait_for_copies() const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }
  __device__ __forceinline__ void store_quad(float* to, const Four& from, bool aligned) const {
    if (aligned) {
      *reinterpret_cast<float4*>(to) = make_float4(from.v[0], from.v[1], from.v[2], from.v[3]);
    } else {
      for (int c = 0; c < 4; ++c) to[c] = from.v[c];
    }
  }
};

// TEAMS matrices a block, ROWS rows of a panel a lane: d <= LANES * ROWS. The registers must allow BLOCKS blocks at once on
// a multiprocessor; without a number ptxas aims higher and spills.
template <int LANES, int ROWS, int TEAMS, int BLOCKS>
__global__ void __launch_bounds__(LANES* TEAMS, BLOCKS) cholesky_kernel(const __grid_constant__ Work w) {
  static_assert(LANES <= 32 || TEAMS == 1, "a team wider than a warp syncs the block");
  extern __shared__ Four memory[];
  const int team = threadIdx.x / LANES;
  const int64_t k = (int64_t)blockIdx.x * TEAMS + team;
  if (k >= w.matrices) return;
  small_cholesky::run<ROWS>(ThreadTeam<LANES>{(int)(threadIdx.x % LANES)}, w, k,
                            memory + team * small_cholesky::team_words(w.d));
}

template <int LANES, int ROWS, int TEAMS, int BLOCKS>
cudaError_t launch(const Work& w, cudaStream_t stream) {
  const int64_t blocks = (w.matrices + TEAMS - 1) / TEAMS;
  const size_t shared = sizeof(Four) * TEAMS * small_cholesky::team_words(w.d);  // below 48 KB: no opt-in
  cholesky_kernel<LANES, ROWS, TEAMS, BLOCKS><<<(unsigned)blocks, LANES * TEAMS, shared, stream>>>(w);
  return cudaGetLastError();
}

}  // namespace

const char* problem(int device) {
  cudaError_t error = cudaSetDevice(device);
  cudaFuncAttributes attributes;  // an architecture without code shows here, not in the middle of a stream
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, cholesky_kernel<32, 1, 2, 12>);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

const char* cholesky(const Work& w, int device, uintptr_t stream) {
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
    error = w.d <= 16   ? launch<16, 1, 4, 12>(w, queue)
            : w.d <= 32 ? launch<32, 1, 2, 12>(w, queue)
            : w.d <= 64 ? launch<32, 2, 1, 20>(w, queue)
                        : launch<64, 2, 1, 6>(w, queue);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

int runtime_version() { return CUDART_VERSION; }

}  // namespace cuda
}  // namespace ansn
