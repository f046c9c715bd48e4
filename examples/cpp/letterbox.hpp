// The letterbox of deploykit's runtime: the same pixels, and the way back from the canvas to the image.
#pragma once

#include <algorithm>
#include <cmath>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <vector>

#include "spec.hpp"

struct Letterbox {
  cv::Size source, resized;
  int left = 0, top = 0;

  Letterbox(const Spec& spec, cv::Size image) : source(image) {
    double gain = std::min(double(spec.height) / image.height, double(spec.width) / image.width);
    if (!spec.scale_up) gain = std::min(gain, 1.0);
    const auto whole = [&](double side) {
      // nearbyint rounds halves to even, as Python's round does
      const double rounded = spec.rounding == "floor"  ? std::floor(side)
                             : spec.rounding == "ceil" ? std::ceil(side)
                                                       : std::nearbyint(side);
      return std::max(1, int(rounded));
    };
    resized = {whole(image.width * gain), whole(image.height * gain)};
    if (spec.centred) {
      left = (spec.width - resized.width) / 2;
      top = (spec.height - resized.height) / 2;
    }
  }

  // The network's input (3, height, width) of a BGR image.
  std::vector<float> blob(const Spec& spec, const cv::Mat& image) const {
    cv::Mat canvas(spec.height, spec.width, CV_8UC3, cv::Scalar::all(spec.pad_value));
    cv::Mat inside = canvas(cv::Rect(left, top, resized.width, resized.height));
    if (resized == source)
      image.copyTo(inside);
    else
      cv::resize(image, inside, resized, 0, 0, cv::INTER_LINEAR);
    const size_t plane = size_t(spec.height) * spec.width;
    std::vector<float> values(3 * plane);
    float table[3][256];
    for (int channel = 0; channel < 3; ++channel)
      for (int pixel = 0; pixel < 256; ++pixel)
        table[channel][pixel] = float((pixel * spec.scale - spec.mean[channel]) / spec.deviation[channel]);
    for (size_t i = 0; i < plane; ++i)
      for (int channel = 0; channel < 3; ++channel)
        values[channel * plane + i] = table[channel][canvas.data[3 * i + (spec.rgb ? 2 - channel : channel)]];
    return values;
  }

  cv::Point2f to_source(float x, float y) const {
    return {(x - left) * source.width / resized.width, (y - top) * source.height / resized.height};
  }
};
