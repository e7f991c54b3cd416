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

template <class T>
constexpr int kWide = 16 / sizeof(T);  // numbers in the widest copy

// LANES threads: part of a warp, a warp, or the block.
template <int LANES>
struct ThreadTeam {
  static constexpr int kLanes = LANES;
  template <class V>
  struct PerLane {
    V value;
    __device__ __forceinline__ V& of(int) { return value; }
    __device__ __forceinline__ const V& any() const { return value; }
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
  template <class T>
  __device__ __forceinline__ void copy_quad(Four<T>* to, const T* from, bool aligned) const {
    if (aligned) {
      for (int c = 0; c < 4; c += kWide<T>) __pipeline_memcpy_async(&to->v[c], from + c, 16);
    } else {
      for (int c = 0; c < 4; ++c) copy_one(&to->v[c], from + c);
    }
  }
  template <class T>
  __device__ __forceinline__ void copy_one(T* to, const T* from) const {
    __pipeline_memcpy_async(to, from, sizeof(T));
  }
  __device__ __forceinline__ void wait_for_copies() const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }
  template <class T>
  __device__ __forceinline__ void store_quad(T* to, const Four<T>& from, bool aligned) const {
    if (aligned) {
      for (int c = 0; c < 4; c += kWide<T>)
        *reinterpret_cast<float4*>(to + c) = *reinterpret_cast<const float4*>(&from.v[c]);
    } else {
      for (int c = 0; c < 4; ++c) to[c] = from.v[c];
    }
  }
};

// TEAMS matrices a block, a row a lane: d <= LANES. The registers must allow BLOCKS blocks at once on a multiprocessor;
// without a number ptxas aims higher and spills.
template <class T, int LANES, int TEAMS, int BLOCKS>
__global__ void __launch_bounds__(LANES* TEAMS, BLOCKS) cholesky_kernel(const __grid_constant__ Work<T> w) {
  static_assert(LANES <= 32 || TEAMS == 1, "a team wider than a warp syncs the block");
  extern __shared__ float4 memory[];
  const int team = threadIdx.x / LANES;
  const int64_t k = (int64_t)blockIdx.x * TEAMS + team;
  if (k >= w.matrices) return;
  small_cholesky::run(ThreadTeam<LANES>{(int)(threadIdx.x % LANES)}, w, k,
                      reinterpret_cast<Four<T>*>(memory) + team * small_cholesky::team_words(w.d));
}

template <class T, int LANES, int TEAMS, int BLOCKS>
cudaError_t launch(const Work<T>& w, cudaStream_t stream) {
  const int64_t blocks = (w.matrices + TEAMS - 1) / TEAMS;
  const int shared = sizeof(Four<T>) * TEAMS * small_cholesky::team_words(w.d);
  const auto kernel = cholesky_kernel<T, LANES, TEAMS, BLOCKS>;
  cudaError_t error = cudaSuccess;
  if (shared > 48 << 10) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  kernel<<<(unsigned)blocks, LANES * TEAMS, shared, stream>>>(w);
  return cudaGetLastError();
}

template <class T>
const char* factor(const Work<T>& w, int device, uintptr_t stream) {
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
    constexpr int kHalf = sizeof(T) / 4;  // a float64 takes twice the registers and the shared memory
    error = w.d <= 16   ? launch<T, 16, 4, 16 / kHalf>(w, queue)
            : w.d <= 32 ? launch<T, 32, 2, 16 / kHalf>(w, queue)
            : w.d <= 64 ? launch<T, 64, 1, 16 / kHalf>(w, queue)
                        : launch<T, 128, 1, 6 / kHalf>(w, queue);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* problem(int device) {
  cudaError_t error = cudaSetDevice(device);
  cudaFuncAttributes attributes;  // an architecture without code shows here, not in the middle of a stream
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, cholesky_kernel<float, 32, 2, 16>);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

const char* cholesky(const Work<float>& w, int device, uintptr_t stream) { return factor(w, device, stream); }
const char* cholesky(const Work<double>& w, int device, uintptr_t stream) { return factor(w, device, stream); }

int runtime_version() { return CUDART_VERSION; }

}  // namespace cuda
}  // namespace ansn
