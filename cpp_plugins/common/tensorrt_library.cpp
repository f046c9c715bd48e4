// What TensorRT asks the library for: its creators, once it has been told where errors go. Links to no TensorRT
// library: what the plugins need of one comes through virtual functions.
#include "common/tensorrt.h"

#define TENSORRT_VERSION DEPLOYKIT_TEXT(NV_TENSORRT_MAJOR) "." DEPLOYKIT_TEXT(NV_TENSORRT_MINOR)

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API const char* deploykit_built_with() {
  return "TensorRT " TENSORRT_VERSION " headers, " DEPLOYKIT_BUILT_WITH;
}

DEPLOYKIT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { deploykit::trt::logger_finder = finder; }

DEPLOYKIT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      deploykit::nms::creator(), deploykit::decode::creator()};
  count = 2;
  return creators;
}
