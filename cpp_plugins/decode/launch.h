// Decoding a batch on a GPU: what the TensorRT plugin and the CUDA library call. Needs the CUDA headers, not nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include "kernel.cuh"

namespace deploykit {
namespace decode {

// Levels are (batch, anchors * columns, height, width), float16 where `half`; rows are (batch, rows, columns) float32.
// Nothing is waited for; the result is CUDA's code of the launch.
cudaError_t launch(const void* const* levels, bool half, int32_t batch, const Head& head, const Grid& grid, float* rows,
    cudaStream_t stream);

}  // namespace decode
}  // namespace deploykit
