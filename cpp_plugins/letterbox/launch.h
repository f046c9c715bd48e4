// Letterbox of a batch on a GPU: what the CUDA library calls. Needs the CUDA headers, not nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include "kernel.cuh"

namespace deploykit {
namespace letterbox {

// BGR images in device memory, `pitches` bytes a row, to (count, 3, H, W) in device memory; all canvases have the size
// of the first. `table` is host memory: three times 256 values in the output's channel order, float16 where `half`,
// else float32, as the output. Nothing is waited for; the result is CUDA's code of the launches.
cudaError_t launch(const Plan* plans, const uint8_t* const* sources, const int64_t* pitches, int32_t count,
    const void* table, bool half, void* out, cudaStream_t stream);

}  // namespace letterbox
}  // namespace deploykit
