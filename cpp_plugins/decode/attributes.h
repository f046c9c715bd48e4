// The attributes of the ONNX node DecodeRows, as README.md freezes them: read one way by TensorRT and ONNX Runtime.
#pragma once

#include <string>
#include <vector>

#include "kernel.cuh"

namespace deploykit {
namespace decode {

struct Attributes {
  int32_t num_classes = 0;
  int32_t num_keypoints = 0;
  std::vector<int32_t> strides;  // one a level
  std::vector<float> anchors;    // width and height in pixels, anchor after anchor, level after level

  int32_t levels() const { return static_cast<int32_t>(strides.size()); }

  int32_t anchors_a_level() const { return static_cast<int32_t>(anchors.size() / (2 * strides.size())); }

  Head head() const {
    Head head{};
    head.levels = levels();
    head.anchors = anchors_a_level();
    head.num_classes = num_classes;
    head.num_keypoints = num_keypoints;
    for (int32_t i = 0; i < head.levels; ++i) {
      head.stride[i] = static_cast<float>(strides[i]);
      for (int32_t a = 0; a < head.anchors; ++a) {
        for (int32_t d = 0; d < 2; ++d) head.anchor[i][a][d] = anchors[(i * head.anchors + a) * 2 + d];
      }
    }
    return head;
  }

  // What is wrong with them, or nothing.
  std::string validation_error() const {
    const auto got = [](size_t number) { return ", got " + std::to_string(number); };
    if (num_classes < 1) return "attribute num_classes must be at least 1, got " + std::to_string(num_classes);
    if (num_keypoints < 0) return "attribute num_keypoints must be at least 0, got " + std::to_string(num_keypoints);
    if (strides.empty() || strides.size() > most_levels) {
      return "attribute strides must have 1..8 entries" + got(strides.size());
    }
    for (const int32_t stride : strides) {
      if (stride < 1) return "attribute strides must be at least 1, got " + std::to_string(stride);
    }
    const size_t a_level = 2 * strides.size();
    if (anchors.empty() || anchors.size() % a_level || anchors.size() / a_level > most_anchors) {
      return "attribute anchors must have two numbers for each of 1..8 anchors of " + std::to_string(strides.size()) +
             " levels" + got(anchors.size());
    }
    return {};
  }

  // An input of level `level` with so many channels, or what is wrong with it.
  std::string channels_error(int32_t level, int64_t channels) const {
    const Head head = this->head();
    const int64_t expected = static_cast<int64_t>(head.anchors) * columns_of(head);
    if (channels == expected) return {};
    return "input " + std::to_string(level) + " must have " + std::to_string(expected) + " channels (" +
           std::to_string(head.anchors) + " anchors of " + std::to_string(columns_of(head)) + " columns), got " +
           std::to_string(channels);
  }
};

}  // namespace decode
}  // namespace deploykit
