// The C interface of the CUDA library: device pointers, and a stream as cuda.h and the runtime API share it. Functions
// that launch return 0, or CUDA's error code.
#include "common/portable.h"
#include "decode/launch.h"
#include "letterbox/launch.h"
#include "nms_kpt/launch.h"

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API const char* deploykit_built_with() { return DEPLOYKIT_BUILT_WITH; }

// `route` is a Route of nms_kpt/launch_plan.h: 0 chooses, 1 is a block for each image, 2 spreads images over the GPU.
DEPLOYKIT_API int64_t deploykit_nms_cuda_workspace(int64_t batch, int64_t count, int32_t topk, int32_t route) {
  return static_cast<int64_t>(
      deploykit::nms::workspace_bytes(batch, count, topk, static_cast<deploykit::nms::Route>(route)));
}

// Whether route 0 spreads such a batch over a GPU with so many multiprocessors.
DEPLOYKIT_API int32_t deploykit_nms_cuda_spreads(int64_t batch, int64_t count, int32_t multiprocessors) {
  return deploykit::nms::spreads(batch, count, multiprocessors);
}

DEPLOYKIT_API int32_t deploykit_nms_cuda(const void* rows, int32_t half, int32_t batch, int32_t count,
    const deploykit::nms::Layout* layout, const deploykit::nms::Limits* limits, const deploykit::nms::Outputs* out,
    void* workspace, int32_t route, void* stream) {
  return deploykit::nms::launch(rows, half != 0, batch, count, *layout, *limits, *out, workspace,
      static_cast<deploykit::nms::Route>(route), static_cast<cudaStream_t>(stream));
}

// `levels` is an array on the host of device pointers.
DEPLOYKIT_API int32_t deploykit_decode_cuda(const void* const* levels, int32_t half, int32_t batch,
    const deploykit::decode::Head* head, const deploykit::decode::Grid* grid, float* rows, void* stream) {
  return deploykit::decode::launch(levels, half != 0, batch, *head, *grid, rows, static_cast<cudaStream_t>(stream));
}

// `plans`, `sources`, `pitches` and `table` are arrays on the host; `sources` holds device pointers.
DEPLOYKIT_API int32_t deploykit_letterbox_cuda(const deploykit::letterbox::Plan* plans, const uint8_t* const* sources,
    const int64_t* pitches, int32_t count, const void* table, int32_t half, void* out, void* stream) {
  return deploykit::letterbox::launch(
      plans, sources, pitches, count, table, half != 0, out, static_cast<cudaStream_t>(stream));
}
