// What the ONNX Runtime operators share. The API is handed over when they are registered: no library is linked to.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <string>

#include "portable.h"

namespace deploykit {
namespace ort {

inline Ort::Status refusal(const char* name, const std::string& what) {
  return Ort::Status((std::string(name) + ": " + what).c_str(), ORT_INVALID_ARGUMENT);
}

// The kernel of a node, unless its attributes make no sense.
template <typename Kernel, typename Attributes>
inline OrtStatusPtr create_kernel(
    const char* name, const OrtKernelInfo* info, Attributes (*read)(const OrtKernelInfo*), void** kernel) {
  try {
    const Attributes attributes = read(info);
    const std::string error = attributes.validation_error();
    if (!error.empty()) return refusal(name, error).release();
    *kernel = new Kernel(attributes);
  } catch (const std::exception& error) {
    return refusal(name, error.what()).release();
  }
  return nullptr;
}

}  // namespace ort

// The operators, one a folder.
namespace nms {
const OrtCustomOp* onnxruntime_operator();
}
namespace decode {
const OrtCustomOp* onnxruntime_operator();
}

}  // namespace deploykit
