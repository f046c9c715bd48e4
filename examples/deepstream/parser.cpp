// DeepStream's custom parsers for models that deploykit exported with NMS inside (--nms graph or plugin): any number of
// classes and keypoints, because everything is read off the shapes of the outputs.
//
//   DeploykitParseBoxes       parse-bbox-func-name, network-type=0
//   DeploykitParseKeypoints   parse-bbox-instance-mask-func-name, network-type=3, output-instance-mask=1: DeepStream
//   has
//                             no field for keypoints, so that the mask of an object holds them: x, y, v of each, in
//                             pixels of the network (mask_width 3, mask_height the number of keypoints)
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

const NvDsInferLayerInfo* find(
    const std::vector<NvDsInferLayerInfo>& layers, const char* name, NvDsInferDataType type) {
  for (const NvDsInferLayerInfo& layer : layers) {
    if (std::strcmp(layer.layerName, name) != 0) continue;
    if (layer.dataType == type) return &layer;
    std::cerr << "deploykit: the output " << name << " has another data type than expected\n";
    return nullptr;
  }
  return nullptr;
}

// The outputs of one image; DeepStream has taken the batch off their shapes.
struct Outputs {
  const int32_t* labels = nullptr;
  const float* boxes = nullptr;
  const float* scores = nullptr;
  const float* keypoints = nullptr;
  unsigned count = 0, points = 0;

  explicit Outputs(const std::vector<NvDsInferLayerInfo>& layers) {
    const auto* number = find(layers, "num_dets", INT32);
    const auto* box = find(layers, "boxes", FLOAT);
    const auto* score = find(layers, "scores", FLOAT);
    const auto* label = find(layers, "labels", INT32);
    const auto* keypoint = find(layers, "keypoints", FLOAT);
    if (!number || !box || !score || !label) {
      std::cerr << "deploykit: expected the outputs num_dets, boxes, scores and labels: export with --nms graph\n";
      return;
    }
    const int32_t found = *static_cast<const int32_t*>(number->buffer);
    count = unsigned(std::clamp<int64_t>(found, 0, int64_t(score->inferDims.numElements)));
    boxes = static_cast<const float*>(box->buffer);
    scores = static_cast<const float*>(score->buffer);
    labels = static_cast<const int32_t*>(label->buffer);
    if (keypoint != nullptr && keypoint->inferDims.numDims == 3) {
      keypoints = static_cast<const float*>(keypoint->buffer);
      points = unsigned(keypoint->inferDims.d[1]);
    }
  }
};

// The box of slot i within the network's input, if its class is configured and its score is over the class's threshold.
template <typename Object>
bool fill(const Outputs& outputs, unsigned i, const NvDsInferNetworkInfo& network,
    const NvDsInferParseDetectionParams& wanted, Object& object) {
  const int32_t label = outputs.labels[i];
  if (label < 0 || unsigned(label) >= wanted.numClassesConfigured) return false;
  if (outputs.scores[i] < wanted.perClassPreclusterThreshold[size_t(label)]) return false;
  const float* box = outputs.boxes + 4 * size_t(i);
  const float left = std::clamp(box[0], 0.0f, float(network.width));
  const float top = std::clamp(box[1], 0.0f, float(network.height));
  object.classId = unsigned(label);
  object.detectionConfidence = outputs.scores[i];
  object.left = left;
  object.top = top;
  object.width = std::clamp(box[2], 0.0f, float(network.width)) - left;
  object.height = std::clamp(box[3], 0.0f, float(network.height)) - top;
  return object.width > 0 && object.height > 0;
}

}  // namespace

extern "C" bool DeploykitParseBoxes(std::vector<NvDsInferLayerInfo> const& layers, NvDsInferNetworkInfo const& network,
    NvDsInferParseDetectionParams const& wanted, std::vector<NvDsInferObjectDetectionInfo>& objects) {
  const Outputs outputs(layers);
  for (unsigned i = 0; i < outputs.count; ++i) {
    NvDsInferObjectDetectionInfo object{};
    if (fill(outputs, i, network, wanted, object)) objects.push_back(object);
  }
  return outputs.boxes != nullptr;
}

extern "C" bool DeploykitParseKeypoints(std::vector<NvDsInferLayerInfo> const& layers,
    NvDsInferNetworkInfo const& network, NvDsInferParseDetectionParams const& wanted,
    std::vector<NvDsInferInstanceMaskInfo>& objects) {
  const Outputs outputs(layers);
  if (outputs.boxes != nullptr && outputs.keypoints == nullptr)
    std::cerr << "deploykit: the model has no keypoints: take DeploykitParseBoxes and network-type=0\n";
  if (outputs.keypoints == nullptr) return false;
  for (unsigned i = 0; i < outputs.count; ++i) {
    NvDsInferInstanceMaskInfo object{};
    if (!fill(outputs, i, network, wanted, object)) continue;
    const size_t values = 3 * size_t(outputs.points);
    object.mask = new float[values];  // DeepStream deletes it, as an array
    std::copy_n(outputs.keypoints + i * values, values, object.mask);
    object.mask_width = 3;
    object.mask_height = outputs.points;
    object.mask_size = unsigned(values * sizeof(float));
    objects.push_back(object);
  }
  return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(DeploykitParseBoxes);
CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(DeploykitParseKeypoints);
