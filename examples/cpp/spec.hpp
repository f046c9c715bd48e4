// What an engine's record (X.trt.json), or a spec alone, says of a network: the part that a detector with a letterbox
// needs. An engine of trtexec has no record: deploykit inspect X.onnx --draft-spec writes the spec that its file carries.
#pragma once

#include <opencv2/core.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Spec {
  int height = 0, width = 0;  // the canvas in pixels
  bool rgb = true;            // the order of the input's channels
  bool centred = true;        // the image lies in the middle of the canvas, else in its top left corner
  bool scale_up = true;
  std::string rounding = "round";
  int pad_value = 114;
  double scale = 1.0 / 255;
  std::vector<double> mean{0, 0, 0}, deviation{1, 1, 1};
  std::string input = "images";
  std::vector<std::string> classes;
};

inline cv::FileNode needed(const cv::FileNode& node, const char* key) {
  const cv::FileNode found = node[key];
  if (found.empty()) throw std::runtime_error(std::string("the record has no ") + key);
  return found;
}

// OpenCV reads JSON too, so that this example needs no further library.
inline Spec read_spec(const std::string& record) {
  cv::FileStorage file(record, cv::FileStorage::READ | cv::FileStorage::FORMAT_JSON);
  if (!file.isOpened())
    throw std::runtime_error("cannot read " + record + ", the record or the spec of the engine; for an engine of trtexec: "
                             "deploykit inspect X.onnx --draft-spec > " + record);
  const cv::FileNode spec = file["spec"].empty() ? file.root() : file["spec"], input = needed(spec, "input"), fit = needed(input, "fit");
  if (std::string(needed(fit, "kind")) != "letterbox")
    throw std::runtime_error("this example prepares images by a letterbox, and the model has another fit");
  if (std::string(needed(needed(spec, "output"), "kind")) != "nms")
    throw std::runtime_error("this example needs a model with NMS inside: deploykit export --nms plugin, or graph");
  Spec found;
  found.height = int(needed(input, "size")[0]);
  found.width = int(needed(input, "size")[1]);
  found.rgb = std::string(needed(input, "colour")) == "rgb";
  found.centred = std::string(needed(fit, "anchor")) == "centre";
  found.scale_up = int(needed(fit, "scale_up")) != 0;  // OpenCV reads true and false as 1 and 0
  found.rounding = std::string(needed(fit, "rounding"));
  found.pad_value = int(needed(fit, "pad_value"));
  found.scale = double(needed(input, "scale"));
  for (int i = 0; i < 3; ++i) {
    found.mean[i] = double(needed(input, "mean")[i]);
    found.deviation[i] = double(needed(input, "std")[i]);
  }
  found.input = std::string(needed(input, "name"));
  for (const cv::FileNode& name : needed(spec, "classes")) found.classes.push_back(std::string(name));
  return found;
}
