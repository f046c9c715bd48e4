// The kernels: one that scores all rows of a batch; one in which a thread block finishes each image; and the four that
// spread each image over the GPU instead.
#include "launch.h"
#include "spread.cuh"

namespace deploykit {
namespace nms {
namespace {

constexpr uint32_t warp_lanes = 32;
constexpr int few_threads = 256;    // of what many blocks do side by side
constexpr int many_threads = 1024;  // of what one block does for an image

// A warp, whose lanes arrive together.
struct BlockWarp {
  static constexpr uint32_t all = 0xffffffffu;

  __device__ uint32_t index() const { return threadIdx.x / warp_lanes; }
  __device__ uint32_t lane() const { return threadIdx.x % warp_lanes; }
  __device__ uint32_t width() const { return warp_lanes; }
  __device__ uint32_t ballot(bool is) const { return __ballot_sync(all, is); }

  __device__ float greatest(float value) const {
    for (int step = warp_lanes / 2; step; step /= 2) value = greater(__shfl_xor_sync(all, value, step), value);
    return value;
  }

  __device__ uint32_t lowest(uint32_t value) const {
    for (int step = warp_lanes / 2; step; step /= 2) value = min(__shfl_xor_sync(all, value, step), value);
    return value;
  }

  __device__ uint32_t sum(uint32_t value) const {
    for (int step = warp_lanes / 2; step; step /= 2) value += __shfl_xor_sync(all, value, step);
    return value;
  }

  __device__ uint32_t reserve(uint32_t* counter, uint32_t n) const {
    const uint32_t before = lane() == 0 ? atomicAdd(counter, n) : 0;
    return __shfl_sync(all, before, 0);
  }
};

// A thread block as the team of team.cuh. Lanes of a warp that come to an atomic together do it as one.
struct BlockTeam {
  __device__ uint32_t lane() const { return threadIdx.x; }
  __device__ uint32_t lanes() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }
  __device__ uint32_t warps() const { return blockDim.x / warp_lanes; }
  __device__ BlockWarp warp() const { return {}; }

  __device__ uint32_t next(uint32_t* counter) const {
    const uint32_t here = __activemask();
    const int leader = __ffs(static_cast<int>(here)) - 1;
    const uint32_t lane = threadIdx.x % warp_lanes;
    const uint32_t before = lane == leader ? atomicAdd(counter, bits_set(here)) : 0;
    return __shfl_sync(here, before, leader) + bits_set(here & ((1u << lane) - 1));
  }

  __device__ void tally(uint32_t* histogram, uint32_t digit) const {
    const uint32_t same = __match_any_sync(__activemask(), digit);
    const bool is_leader = threadIdx.x % warp_lanes == lowest_bit(same);
    if (is_leader) atomicAdd(&histogram[digit], bits_set(same));
  }

  __device__ void merge(uint64_t* word, uint64_t bits) const {
    atomicOr(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(bits));
  }
};

template <typename T>
__global__ void __launch_bounds__(few_threads) score_kernel(Batch<T> batch) {
  BlockTeam team;
  score_rows(team, batch, blockIdx.x, blockIdx.y);
}

template <typename T>
__global__ void __launch_bounds__(many_threads) finish_kernel(Batch<T> batch) {
  __shared__ Scratch scratch;
  BlockTeam team;
  finish_image(team, batch, blockIdx.x, scratch);
}

template <typename T>
__global__ void __launch_bounds__(many_threads) select_kernel(Batch<T> batch) {
  __shared__ Selection scratch;
  BlockTeam team;
  select_best(team, batch, blockIdx.x, scratch);
}

template <typename T>
__global__ void __launch_bounds__(few_threads) place_kernel(Batch<T> batch) {
  BlockTeam team;
  place_candidates(team, batch, blockIdx.x, blockIdx.y);
}

template <typename T>
__global__ void __launch_bounds__(tile_lanes) mark_kernel(Batch<T> batch) {
  __shared__ Chosen scratch[tile];
  BlockTeam team;
  mark_overlaps(team, batch, blockIdx.x, blockIdx.y, blockIdx.z, scratch);
}

template <typename T>
__global__ void __launch_bounds__(many_threads) scan_kernel(Batch<T> batch) {
  __shared__ Suppression scratch;
  BlockTeam team;
  scan_image(team, batch, blockIdx.x, scratch);
}

uint32_t shares(uint32_t count, uint32_t each) { return (count + each - 1) / each; }

template <typename T>
cudaError_t launch_spread(const Batch<T>& batch, uint32_t images, cudaStream_t stream) {
  const uint32_t most = min(batch.topk(), batch.count);  // candidates that there can be
  if (most > 0) {
    const uint32_t tiles = tiles_of(most);
    if (batch.count > batch.topk()) select_kernel<<<images, many_threads, 0, stream>>>(batch);
    const dim3 places(shares(most, few_threads / warp_lanes), images);
    place_kernel<<<places, few_threads, 0, stream>>>(batch);
    mark_kernel<<<dim3(tiles, tiles, images), tile_lanes, 0, stream>>>(batch);
  }
  scan_kernel<<<images, many_threads, 0, stream>>>(batch);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_on(const Batch<T>& batch, uint32_t images, bool is_spread, cudaStream_t stream) {
  if (const cudaError_t code = cudaMemsetAsync(batch.found, 0, sizeof(uint32_t) * images, stream)) return code;
  if (batch.count > 0) {
    const uint32_t rows_of_block = few_threads / warp_lanes * rows_of_warp(batch.layout, warp_lanes);
    score_kernel<<<dim3(shares(batch.count, rows_of_block), images), few_threads, 0, stream>>>(batch);
    if (const cudaError_t code = cudaGetLastError()) return code;
  }
  if (is_spread) return launch_spread(batch, images, stream);
  finish_kernel<<<images, many_threads, 0, stream>>>(batch);
  return cudaGetLastError();
}

// Whether images are spread over the calling thread's current device.
cudaError_t choose(Route route, int32_t batch, int32_t count, bool* is_spread) {
  *is_spread = route == Route::spread;
  if (route != Route::automatic) return cudaSuccess;
  int device = 0, multiprocessors = 0;
  if (const cudaError_t code = cudaGetDevice(&device)) return code;
  if (const cudaError_t code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return code;
  }
  *is_spread = spreads(batch, count, multiprocessors);
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(const void* rows, bool half, int32_t batch, int32_t count, const Layout& layout,
    const Limits& limits, const Outputs& out, void* workspace, Route route, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  if (batch < 0 || batch > 65535 || count < 0 || limits.topk < 1 || limits.topk > most_topk || limits.max_det < 1) {
    return cudaErrorInvalidValue;
  }
  bool is_spread = false;
  if (const cudaError_t code = choose(route, batch, count, &is_spread)) return code;
  const auto images = static_cast<uint32_t>(batch);
  const auto start = [&](const auto* typed) {
    return launch_on(
        batch_of(typed, batch, count, layout, limits, out, workspace, is_spread), images, is_spread, stream);
  };
  return half ? start(static_cast<const Half*>(rows)) : start(static_cast<const float*>(rows));
}

}  // namespace nms
}  // namespace deploykit
