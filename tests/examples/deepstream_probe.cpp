// Gives outputs of a model to the DeepStream parsers as nvinfer does, and prints what they find.
//   probe SLOTS KEYPOINTS CLASSES THRESHOLD < num_dets, then label, score, box and keypoints of each slot
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "nvdsinfer_custom_impl.h"

extern "C" bool DeploykitParseBoxes(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
    NvDsInferParseDetectionParams const&, std::vector<NvDsInferObjectDetectionInfo>&);
extern "C" bool DeploykitParseKeypoints(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
    NvDsInferParseDetectionParams const&, std::vector<NvDsInferInstanceMaskInfo>&);

template <typename T>
NvDsInferLayerInfo layer(
    const char* name, NvDsInferDataType type, std::vector<T>& values, std::vector<unsigned> shape) {
  NvDsInferLayerInfo found{};
  found.dataType = type;
  found.layerName = name;
  found.buffer = values.data();
  found.inferDims.numDims = unsigned(shape.size());
  found.inferDims.numElements = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    found.inferDims.d[i] = shape[i];
    found.inferDims.numElements *= shape[i];
  }
  return found;
}

template <typename Object>
void print(const Object& o) {
  std::printf("%u %.4f %.4f %.4f %.4f %.4f", o.classId, o.detectionConfidence, o.left, o.top, o.width, o.height);
}

int main(int, char** argv) {
  const unsigned slots = unsigned(std::atoi(argv[1])), points = unsigned(std::atoi(argv[2]));
  std::vector<int32_t> number(1), labels(slots);
  std::vector<float> scores(slots), boxes(4 * slots), keypoints(3 * slots * points);
  bool read = std::scanf("%d", number.data()) == 1;
  for (unsigned i = 0; i < slots; ++i) {
    read &= std::scanf("%d %f", &labels[i], &scores[i]) == 2;
    for (unsigned k = 0; k < 4; ++k) read &= std::scanf("%f", &boxes[4 * i + k]) == 1;
    for (unsigned k = 0; k < 3 * points; ++k) read &= std::scanf("%f", &keypoints[3 * points * i + k]) == 1;
  }
  if (!read) return 2;
  std::vector<NvDsInferLayerInfo> layers = {layer("boxes", FLOAT, boxes, {slots, 4}),
      layer("num_dets", INT32, number, {1}), layer("labels", INT32, labels, {slots}),
      layer("scores", FLOAT, scores, {slots})};
  if (points) layers.push_back(layer("keypoints", FLOAT, keypoints, {slots, points, 3}));
  NvDsInferParseDetectionParams wanted;
  wanted.numClassesConfigured = unsigned(std::atoi(argv[3]));
  wanted.perClassPreclusterThreshold.assign(wanted.numClassesConfigured, float(std::atof(argv[4])));
  const NvDsInferNetworkInfo network{640, 480, 3};
  std::vector<NvDsInferObjectDetectionInfo> found;
  std::printf("boxes %d\n", DeploykitParseBoxes(layers, network, wanted, found));
  for (const auto& object : found) {
    print(object);
    std::printf("\n");
  }
  std::vector<NvDsInferInstanceMaskInfo> posed;
  std::printf("keypoints %d\n", DeploykitParseKeypoints(layers, network, wanted, posed));
  for (const auto& object : posed) {
    print(object);
    const std::unique_ptr<float[]> mask(object.mask);
    for (unsigned k = 0; k < object.mask_size / sizeof(float); ++k) std::printf(" %.4f", mask[k]);
    std::printf(" (%ux%u)\n", object.mask_width, object.mask_height);
  }
  layers.erase(layers.begin());
  std::printf("without boxes %d\n", DeploykitParseBoxes(layers, network, wanted, found));
}
