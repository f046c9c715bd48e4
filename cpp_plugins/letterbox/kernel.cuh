// Letterbox and blob in one pass: bilinear resize, border, colour order, scale / mean / std, HWC to CHW.
//
// The resize is OpenCV's INTER_LINEAR on 8-bit images: taps and weights are computed as there (positions rounded to
// float, weights in 1/2048), and the sum of the four products is exact and rounded once, half up. OpenCV itself rounds
// in between on some paths, so a value may differ by one grey level.
//
// Values go through a table of 256 entries a channel in the output's own type, as runtime/images/to_tensor.py makes it:
// scale, mean, std and half precision cost nothing here and are rounded where numpy rounds them.
#pragma once

#include "common/portable.h"

namespace deploykit {
namespace letterbox {

constexpr int32_t unit = 2048;  // weights are whole numbers of 1 / unit

// One image on its canvas; all sizes in pixels.
struct Plan {
  int32_t source_height, source_width;
  int32_t resized_height, resized_width;
  int32_t canvas_height, canvas_width;
  int32_t top, left;
  int32_t pad_value;
  int32_t swap;  // 1: channel 0 of the output is channel 2 of the image (BGR to RGB)
};

static_assert(
    is_plain<Plan> && sizeof(Plan) == 10 * sizeof(int32_t), "runtime/native/cuda_library.py has the same struct");

// The two source pixels of one output pixel along an axis, and the second one's weight.
struct Tap {
  int32_t first, second, weight;
};

DEPLOYKIT_HOST_DEVICE double ratio_of(int32_t source, int32_t resized) {
  return 1.0 / (static_cast<double>(resized) / static_cast<double>(source));
}

DEPLOYKIT_HOST_DEVICE int32_t rounded_to_even(float value) {
  const int32_t below = static_cast<int32_t>(value);  // 0 <= value <= unit
  const float rest = value - static_cast<float>(below);
  return below + (rest > 0.5f || (rest == 0.5f && (below & 1)));
}

DEPLOYKIT_HOST_DEVICE Tap tap(int32_t index, double ratio, int32_t size) {
  const float place = static_cast<float>((index + 0.5) * ratio - 0.5);
  int32_t first = static_cast<int32_t>(place);
  if (static_cast<float>(first) > place) --first;
  const float rest = place - static_cast<float>(first);
  if (first < 0) return Tap{0, 0, 0};
  if (first >= size - 1) return Tap{size - 1, size - 1, 0};
  return Tap{first, first + 1, rounded_to_even(rest * static_cast<float>(unit))};
}

// Along one axis; times unit.
DEPLOYKIT_HOST_DEVICE int32_t blended(int32_t a, int32_t b, int32_t weight) { return a * (unit - weight) + b * weight; }

// Along the second axis: two blended values to a grey level.
DEPLOYKIT_HOST_DEVICE int32_t grey_level(int32_t a, int32_t b, int32_t weight) {
  return (blended(a, b, weight) + unit * unit / 2) / (unit * unit);
}

// One channel of one pixel of the resized image; `pitch` is in bytes.
DEPLOYKIT_HOST_DEVICE int32_t resized_value(
    const uint8_t* source, int64_t pitch, const Tap& x, const Tap& y, int32_t channel) {
  const uint8_t* above = source + y.first * pitch + channel;
  const uint8_t* below = source + y.second * pitch + channel;
  const int32_t first = blended(above[3 * x.first], below[3 * x.first], y.weight);
  const int32_t second = blended(above[3 * x.second], below[3 * x.second], y.weight);
  return grey_level(first, second, x.weight);
}

// The three channels of one pixel of the canvas, in the output's order; the border where there is no image.
struct Pixel {
  int32_t values[3];
};

DEPLOYKIT_HOST_DEVICE Pixel canvas_pixel(const Plan& plan, const uint8_t* source, int64_t pitch, int32_t x, int32_t y) {
  Pixel pixel{{plan.pad_value, plan.pad_value, plan.pad_value}};
  const int32_t dx = x - plan.left;
  const int32_t dy = y - plan.top;
  if (dx < 0 || dx >= plan.resized_width || dy < 0 || dy >= plan.resized_height) return pixel;
  const Tap across = tap(dx, ratio_of(plan.source_width, plan.resized_width), plan.source_width);
  const Tap down = tap(dy, ratio_of(plan.source_height, plan.resized_height), plan.source_height);
  for (int32_t c = 0; c < 3; ++c) {
    pixel.values[c] = resized_value(source, pitch, across, down, plan.swap ? 2 - c : c);
  }
  return pixel;
}

}  // namespace letterbox
}  // namespace deploykit
