// The C interface of NMS on the CPU; runtime/native/library.py calls it.
#include "host.h"

#include <limits>

namespace {

using deploykit::Half;
using deploykit::nms::Found;
using deploykit::nms::Layout;
using deploykit::nms::Limits;
using deploykit::nms::Workspace;

bool are_consistent(const Layout& layout, const Limits& limits, int64_t rows, int64_t stride) {
  const auto within = [&](int32_t first, int32_t width) { return first >= 0 && first + width <= layout.columns; };
  const bool is_range = rows >= 0 && rows < std::numeric_limits<int32_t>::max() && stride >= layout.columns;
  const bool has_columns = layout.num_classes > 0 && within(layout.box, 4) && within(layout.cls, layout.num_classes) &&
                           (layout.obj < 0 || within(layout.obj, 1));
  return is_range && has_columns && limits.conf >= 0.0f && limits.max_det > 0 && limits.topk > 0;
}

template <typename T>
Found run_on(
    const void* rows, int64_t count, int64_t stride, const Layout& layout, const Limits& limits, Workspace& work) {
  return deploykit::nms::run(static_cast<const T*>(rows), count, stride, layout, limits, work);
}

}  // namespace

// Bytes of memory (aligned to 8) that deploykit_nms needs for so many rows.
DEPLOYKIT_API int64_t deploykit_nms_workspace(int64_t rows, const Limits* limits) {
  return Workspace::bytes(rows, *limits);
}

// NMS of one image. `half`: the rows are float16; `stride`: values from one row to the next. Written are at most
// min(max_det, topk, count) entries of each output, the best first, and the number of candidates.
// Returns how many rows stay, or -1: the arguments contradict each other.
DEPLOYKIT_API int64_t deploykit_nms(const void* rows, int32_t half, int64_t count, int64_t stride, const Layout* layout,
    const Limits* limits, void* workspace, int64_t* kept, float* boxes, float* scores, int64_t* labels,
    int64_t* candidates) {
  if (!are_consistent(*layout, *limits, count, stride)) return -1;
  Workspace work(workspace, count, *limits);
  const Found found = half ? run_on<Half>(rows, count, stride, *layout, *limits, work)
                           : run_on<float>(rows, count, stride, *layout, *limits, work);
  for (int64_t i = 0; i < found.kept; ++i) {
    kept[i] = work.row[i];
    labels[i] = work.label[i];
    scores[i] = work.score[i];
    boxes[4 * i] = work.x1[i];
    boxes[4 * i + 1] = work.y1[i];
    boxes[4 * i + 2] = work.x2[i];
    boxes[4 * i + 3] = work.y2[i];
  }
  *candidates = found.candidates;
  return found.kept;
}
