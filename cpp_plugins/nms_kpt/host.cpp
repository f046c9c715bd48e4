// The C interface of NMS on the CPU; runtime/native/library.py calls it.
#include "host.h"

#include <limits>

namespace {

using deploykit::Half;
using deploykit::nms::Choice;
using deploykit::nms::Found;
using deploykit::nms::Kept;
using deploykit::nms::Layout;
using deploykit::nms::Limits;
using deploykit::nms::Rows;
using deploykit::nms::Workspace;

bool are_consistent(const Rows<void>& rows, const Layout& layout, const Limits& limits, const Choice& choice) {
  const auto within = [&](int32_t first, int32_t width) { return first >= 0 && first + width <= layout.columns; };
  const bool has_columns = layout.num_classes > 0 && within(layout.box, 4) && within(layout.cls, layout.num_classes) &&
                           (layout.obj < 0 || within(layout.obj, 1));
  if (!has_columns || rows.count < 0 || rows.count >= std::numeric_limits<int32_t>::max()) return false;
  const bool lies_right =
      rows.by_columns() ? rows.row_stride == 1 && rows.column_stride >= rows.count : rows.row_stride >= layout.columns;
  // The number of a candidate has 32 bits.
  const bool has_numbers = Workspace::numbers(rows.count, layout, choice) < std::numeric_limits<uint32_t>::max();
  return lies_right && has_numbers && limits.conf >= 0.0f && limits.max_det > 0 && limits.topk > 0;
}

template <typename T>
Found run_on(
    const Rows<void>& rows, const Layout& layout, const Limits& limits, const Choice& choice, Workspace& work) {
  const Rows<T> typed{static_cast<const T*>(rows.values), rows.count, rows.row_stride, rows.column_stride};
  return deploykit::nms::run(typed, layout, limits, choice, work);
}

}  // namespace

// Bytes of memory (aligned to 8) that deploykit_nms needs for so many rows.
DEPLOYKIT_API int64_t deploykit_nms_workspace(
    int64_t rows, const Layout* layout, const Limits* limits, const Choice* choice) {
  return Workspace::bytes(rows, *layout, *limits, *choice);
}

// NMS of one image. `half`: the rows are float16; the strides are values from one row, and from one column, to the
// next, of which one is 1. Written are at most min(max_det, topk) entries of each output, and no more than there are
// rows, or pairs of a row and a class, the best first, and the number of candidates.
// Returns how many objects stay, or -1: the arguments contradict each other.
DEPLOYKIT_API int64_t deploykit_nms(const void* rows, int32_t half, int64_t count, int64_t row_stride,
    int64_t column_stride, const Layout* layout, const Limits* limits, const Choice* choice, void* workspace,
    int64_t* kept, float* boxes, float* scores, int64_t* labels, int64_t* candidates) {
  const Rows<void> all{rows, count, row_stride, column_stride};
  if (!are_consistent(all, *layout, *limits, *choice)) return -1;
  Workspace work(workspace, count, *layout, *limits, *choice);
  const Found found =
      half ? run_on<Half>(all, *layout, *limits, *choice, work) : run_on<float>(all, *layout, *limits, *choice, work);
  for (int64_t i = 0; i < found.kept; ++i) {
    const Kept& one = work.kept[i];
    kept[i] = one.row;
    labels[i] = one.label;
    scores[i] = one.score;
    boxes[4 * i] = one.box.x1;
    boxes[4 * i + 1] = one.box.y1;
    boxes[4 * i + 2] = one.box.x2;
    boxes[4 * i + 3] = one.box.y2;
  }
  *candidates = found.candidates;
  return found.kept;
}
