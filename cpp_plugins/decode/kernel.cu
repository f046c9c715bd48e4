// The kernel: a thread block for each tile of cells of a level and anchor, all levels in one launch.
#include "launch.h"

namespace deploykit {
namespace decode {
namespace {

constexpr int threads = 256;

struct BlockTeam {
  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ int32_t lanes() const { return static_cast<int32_t>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
};

struct Levels {
  const void* raw[most_levels];
};

DEPLOYKIT_HOST_DEVICE int32_t tiles_of(const Grid& grid, int32_t level) {
  return (grid.height[level] * grid.width[level] + tile_cells - 1) / tile_cells;
}

template <typename T>
__global__ void __launch_bounds__(threads) decode_tiles(Levels levels, Head head, Grid grid, float* rows) {
  __shared__ Scratch scratch;
  int32_t tile = static_cast<int32_t>(blockIdx.x);
  int32_t level = 0;
  while (tile >= tiles_of(grid, level) * head.anchors) tile -= tiles_of(grid, level++) * head.anchors;
  const int32_t anchor = tile / tiles_of(grid, level);
  tile -= anchor * tiles_of(grid, level);
  const auto plane = plane_of(
      head, grid, level, anchor, static_cast<int32_t>(blockIdx.y), static_cast<const T*>(levels.raw[level]), rows);
  BlockTeam team;
  decode_tile(team, head, plane, tile * tile_cells, scratch);
}

}  // namespace

cudaError_t launch(const void* const* levels, bool half, int32_t batch, const Head& head, const Grid& grid, float* rows,
    cudaStream_t stream) {
  if (batch < 0 || batch > 65535 || head.levels < 1 || head.levels > most_levels || head.anchors < 1 ||
      head.anchors > most_anchors) {
    return cudaErrorInvalidValue;
  }
  Levels given{};
  int32_t tiles = 0;
  for (int32_t i = 0; i < head.levels; ++i) {
    given.raw[i] = levels[i];
    tiles += tiles_of(grid, i) * head.anchors;
  }
  if (batch == 0 || tiles == 0) return cudaSuccess;
  const dim3 blocks(tiles, batch);
  if (half) {
    decode_tiles<Half><<<blocks, threads, 0, stream>>>(given, head, grid, rows);
  } else {
    decode_tiles<float><<<blocks, threads, 0, stream>>>(given, head, grid, rows);
  }
  return cudaGetLastError();
}

}  // namespace decode
}  // namespace deploykit
