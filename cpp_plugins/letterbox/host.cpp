// The C interface of letterbox on the CPU: rows of the canvas, so that several threads may share one image.
#include <algorithm>

#include "kernel.cuh"

namespace {

using deploykit::letterbox::blended;
using deploykit::letterbox::grey_level;
using deploykit::letterbox::Plan;
using deploykit::letterbox::ratio_of;
using deploykit::letterbox::resized_value;
using deploykit::letterbox::Tap;
using deploykit::letterbox::tap;

// Two rows of the image as one: what the horizontal step needs, for every source pixel.
void blend_rows(const uint8_t* above, const uint8_t* below, int32_t weight, int32_t values, int32_t* row) {
  const int16_t w1 = static_cast<int16_t>(weight);
  const int16_t w0 = static_cast<int16_t>(deploykit::letterbox::unit - weight);
  for (int32_t i = 0; i < values; ++i) {
    row[i] = static_cast<int16_t>(above[i]) * w0 + static_cast<int16_t>(below[i]) * w1;
  }
}

// One row of the resized image into three planes. T is a number of the output's size: tables hold finished values.
template <typename T>
void resize_row(const Plan& plan, const uint8_t* source, int64_t pitch, const Tap& y, const Tap* taps, int32_t* row,
    const T* const tables[3], T* const planes[3]) {
  const int32_t width = plan.resized_width;
  if (plan.source_width > 2 * width) {  // most source pixels are not looked at, so no row of them is made
    for (int32_t c = 0; c < 3; ++c) {
      const int32_t channel = plan.swap ? 2 - c : c;
      for (int32_t x = 0; x < width; ++x) planes[c][x] = tables[c][resized_value(source, pitch, taps[x], y, channel)];
    }
    return;
  }
  blend_rows(source + y.first * pitch, source + y.second * pitch, y.weight, 3 * plan.source_width, row);
  T *const p0 = planes[plan.swap ? 2 : 0], *const p1 = planes[1], *const p2 = planes[plan.swap ? 0 : 2];
  const T *const t0 = tables[plan.swap ? 2 : 0], *const t1 = tables[1], *const t2 = tables[plan.swap ? 0 : 2];
  for (int32_t x = 0; x < width; ++x) {
    const int32_t* a = row + 3 * taps[x].first;
    const int32_t* b = row + 3 * taps[x].second;
    const int32_t weight = taps[x].weight;
    p0[x] = t0[grey_level(a[0], b[0], weight)];
    p1[x] = t1[grey_level(a[1], b[1], weight)];
    p2[x] = t2[grey_level(a[2], b[2], weight)];
  }
}

template <typename T>
void fill_rows(const Plan& plan, const uint8_t* source, int64_t pitch, const T* table, int32_t first, int32_t last,
    void* workspace, T* out) {
  Tap* taps = static_cast<Tap*>(workspace);
  int32_t* row = reinterpret_cast<int32_t*>(taps + plan.resized_width);
  const double across = ratio_of(plan.source_width, plan.resized_width);
  const double down = ratio_of(plan.source_height, plan.resized_height);
  for (int32_t x = 0; x < plan.resized_width; ++x) taps[x] = tap(x, across, plan.source_width);

  const T* const tables[3] = {table, table + 256, table + 512};
  const int64_t plane = static_cast<int64_t>(plan.canvas_height) * plan.canvas_width;
  const int32_t right = plan.left + plan.resized_width;
  for (int32_t y = first; y < last; ++y) {
    const int32_t inside = y - plan.top;
    T* line = out + static_cast<int64_t>(y) * plan.canvas_width;
    if (inside < 0 || inside >= plan.resized_height) {
      for (int32_t c = 0; c < 3; ++c) std::fill_n(line + c * plane, plan.canvas_width, tables[c][plan.pad_value]);
      continue;
    }
    for (int32_t c = 0; c < 3; ++c) {
      T* whole = line + c * plane;
      std::fill(whole, whole + plan.left, tables[c][plan.pad_value]);
      std::fill(whole + right, whole + plan.canvas_width, tables[c][plan.pad_value]);
    }
    T* const planes[3] = {line + plan.left, line + plane + plan.left, line + 2 * plane + plan.left};
    resize_row(plan, source, pitch, tap(inside, down, plan.source_height), taps, row, tables, planes);
  }
}

bool is_sensible(const Plan& plan, int64_t pitch, int32_t first, int32_t last) {
  const auto fits = [](int32_t start, int32_t size, int32_t canvas) {
    return start >= 0 && size > 0 && start + size <= canvas;
  };
  return plan.source_height > 0 && plan.source_width > 0 && pitch >= 3 * static_cast<int64_t>(plan.source_width) &&
         fits(plan.top, plan.resized_height, plan.canvas_height) &&
         fits(plan.left, plan.resized_width, plan.canvas_width) && plan.pad_value >= 0 && plan.pad_value < 256 &&
         first >= 0 && first <= last && last <= plan.canvas_height;
}

}  // namespace

// Bytes of memory (aligned to 8) that one thread of deploykit_letterbox needs.
DEPLOYKIT_API int64_t deploykit_letterbox_workspace(const Plan* plan) {
  return static_cast<int64_t>(sizeof(Tap)) * plan->resized_width + 4 * 3 * static_cast<int64_t>(plan->source_width);
}

// Rows first .. last - 1 of the canvas, in three planes at `out` (the whole image's address). `pitch`: bytes from one
// row of the image to the next; `half`: tables and output are float16, else float32; `table`: three times 256 values
// in the output's channel order. Returns 0, or -1: the arguments contradict each other.
DEPLOYKIT_API int32_t deploykit_letterbox(const Plan* plan, const uint8_t* source, int64_t pitch, const void* table,
    int32_t half, int32_t first, int32_t last, void* workspace, void* out) {
  if (!is_sensible(*plan, pitch, first, last)) return -1;
  if (half) {
    const auto* values = static_cast<const uint16_t*>(table);
    fill_rows(*plan, source, pitch, values, first, last, workspace, static_cast<uint16_t*>(out));
  } else {
    const auto* values = static_cast<const float*>(table);
    fill_rows(*plan, source, pitch, values, first, last, workspace, static_cast<float*>(out));
  }
  return 0;
}
