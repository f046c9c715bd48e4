// Detect objects and keypoints in images by a TensorRT engine with NMS inside, and print them in source pixels.
//   detect ENGINE PLUGINS IMAGE...     PLUGINS: libdeploykit_tensorrt.so, or - for an engine without its nodes
#include <cstdint>
#include <cstdio>
#include <exception>
#include <opencv2/imgcodecs.hpp>
#include <string>

#include "engine.hpp"
#include "letterbox.hpp"
#include "spec.hpp"

namespace {

void print_objects(const Engine& engine, const Spec& spec, const Letterbox& letterbox) {
  const int count = engine.output<int32_t>("num_dets")[0];
  const float* boxes = engine.output<float>("boxes");
  const float* scores = engine.output<float>("scores");
  const int32_t* labels = engine.output<int32_t>("labels");
  const bool has_keypoints = engine.has("keypoints");
  const float* keypoints = has_keypoints ? engine.output<float>("keypoints") : nullptr;
  const int points = has_keypoints ? int(engine.shape("keypoints").d[2]) : 0;
  for (int i = 0; i < count; ++i) {
    const cv::Point2f low = letterbox.to_source(boxes[4 * i], boxes[4 * i + 1]);
    const cv::Point2f high = letterbox.to_source(boxes[4 * i + 2], boxes[4 * i + 3]);
    const size_t label = size_t(labels[i]);
    const std::string name = label < spec.classes.size() ? spec.classes[label] : std::to_string(label);
    std::printf("%s %.3f  %.1f %.1f %.1f %.1f", name.c_str(), scores[i], low.x, low.y, high.x, high.y);
    for (int k = 0; k < points; ++k) {
      const float* point = keypoints + 3 * (size_t(i) * points + k);
      const cv::Point2f place = letterbox.to_source(point[0], point[1]);
      std::printf("  (%.1f %.1f %.2f)", place.x, place.y, point[2]);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: detect ENGINE PLUGINS IMAGE...\n");
    return 2;
  }
  try {
    const std::string engine_path = argv[1], plugins = argv[2];
    const Spec spec = read_spec(engine_path + ".json");
    Engine engine(engine_path, plugins == "-" ? "" : plugins);
    for (int i = 3; i < argc; ++i) {
      const cv::Mat image = cv::imread(argv[i], cv::IMREAD_COLOR);
      if (image.empty()) throw std::runtime_error(std::string("cannot read ") + argv[i]);
      const Letterbox letterbox(spec, image.size());
      engine.run(spec.input, letterbox.blob(spec, image), spec.height, spec.width);
      std::printf("%s\n", argv[i]);
      print_objects(engine, spec, letterbox);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "detect: %s\n", error.what());
    return 1;
  }
  return 0;
}
