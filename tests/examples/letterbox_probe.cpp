// The parts of examples/cpp that need no TensorRT: reads a record and an image, writes the network's input, and maps
// two corners of the canvas back.
//   probe RECORD IMAGE BLOB
#include <cstdio>
#include <fstream>
#include <opencv2/imgcodecs.hpp>

#include "letterbox.hpp"

int main(int, char** argv) {
  try {
    const Spec spec = read_spec(argv[1]);
    const cv::Mat image = cv::imread(argv[2], cv::IMREAD_COLOR);
    const Letterbox letterbox(spec, image.size());
    const std::vector<float> blob = letterbox.blob(spec, image);
    std::ofstream(argv[3], std::ios::binary)
        .write(reinterpret_cast<const char*>(blob.data()), std::streamsize(blob.size() * sizeof(float)));
    for (const auto& [x, y] : {std::pair{10.5f, 20.25f}, std::pair{60.0f, 50.0f}}) {
      const cv::Point2f place = letterbox.to_source(x, y);
      std::printf("%.6f %.6f\n", place.x, place.y);
    }
    for (const std::string& name : spec.classes) std::printf("%s\n", name.c_str());
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
