// What parser.cpp uses of DeepStream's headers, so that it can be compiled and run without the SDK. The names and the
// order of the fields are DeepStream's (6.1 to 8.0); the file is ours.
#pragma once

#include <string>
#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };

struct NvDsInferDims {
  unsigned int numDims;
  unsigned int d[8];
  unsigned int numElements;
};

struct NvDsInferLayerInfo {
  NvDsInferDataType dataType;
  union {
    NvDsInferDims inferDims;
    NvDsInferDims dims;
  };
  int bindingIndex;
  const char* layerName;
  void* buffer;
  int isInput;
};

struct NvDsInferNetworkInfo {
  unsigned int width, height, channels;
};

struct NvDsInferObjectDetectionInfo {
  unsigned int classId;
  float left, top, width, height;
  float detectionConfidence;
};

struct NvDsInferInstanceMaskInfo {
  unsigned int classId;
  float left, top, width, height;
  float detectionConfidence;
  float* mask;
  unsigned int mask_width, mask_height, mask_size;
};

struct NvDsInferParseDetectionParams {
  unsigned int numClassesConfigured;
  std::vector<float> perClassPreclusterThreshold;
  std::vector<float> perClassPostclusterThreshold;
};

#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function)                                                                    \
  [[maybe_unused]] static bool (*check_##function)(std::vector<NvDsInferLayerInfo> const&,                             \
      NvDsInferNetworkInfo const&, NvDsInferParseDetectionParams const&, std::vector<NvDsInferObjectDetectionInfo>&) = \
      function
#define CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(function)                                                   \
  [[maybe_unused]] static bool (*check_##function)(std::vector<NvDsInferLayerInfo> const&,                          \
      NvDsInferNetworkInfo const&, NvDsInferParseDetectionParams const&, std::vector<NvDsInferInstanceMaskInfo>&) = \
      function
