// NMS of the CPU library against the kernels' algorithm (team.cpp): random rows, and every bit of what both give. Built
// by CMakeLists.txt beside it, with sanitizers too.
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "nms_kpt/candidates.h"
#include "nms_kpt/launch_plan.h"

using deploykit::Half;
using deploykit::nms::Choice;
using deploykit::nms::Layout;
using deploykit::nms::Limits;
using deploykit::nms::Outputs;
using deploykit::nms::Route;

extern "C" {
int64_t deploykit_nms_workspace(int64_t rows, const Layout* layout, const Limits* limits, const Choice* choice);
int64_t deploykit_nms(const void* rows, int32_t half, int64_t count, int64_t row_stride, int64_t column_stride,
    const Layout* layout, const Limits* limits, const Choice* choice, void* workspace, int64_t* kept, float* boxes,
    float* scores, int64_t* labels, int64_t* candidates);
int32_t deploykit_nms_cuda(const void* rows, int32_t half, int32_t batch, int32_t count, const Layout* layout,
    const Limits* limits, const Outputs* out, void* workspace, Route route, void* stream);
}

namespace {

// Boxes that overlap, scores that tie, and some rows that are broken.
std::vector<float> crowd(std::mt19937& random, int32_t count, const Layout& layout) {
  std::uniform_real_distribution<float> any(0.0f, 1.0f);
  std::vector<float> rows(static_cast<size_t>(count) * layout.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t column = static_cast<int32_t>(i % layout.columns);
    const float tie = static_cast<float>(static_cast<int32_t>(any(random) * 100.0f)) / 100.0f;
    rows[i] = column < 2 ? any(random) * 100.0f : column < 4 ? any(random) * 40.0f : tie;
    if (any(random) < 0.001f) rows[i] = std::numeric_limits<float>::quiet_NaN();
  }
  return rows;
}

bool agree(std::mt19937& random, int32_t count, bool has_obj, bool cls_counts, Route route) {
  const Layout layout = deploykit::nms::packed_layout(cls_counts ? 3 : 1, 2, 3, has_obj, cls_counts);
  // Few slots for what a tile of 64 rows holds, and room for four tiles.
  const Limits limits = count % 2 ? Limits{0.2f, 0.4f, 30, 100} : Limits{0.2f, 0.5f, 250, 250};
  const auto rows = crowd(random, count, layout);
  const size_t room = static_cast<size_t>(limits.max_det);

  int32_t num_dets = 0, num_candidates = 0;
  std::vector<int32_t> labels(room);
  std::vector<float> boxes(4 * room), scores(room), keypoints(6 * room);
  const Outputs out{&num_dets, boxes.data(), scores.data(), labels.data(), keypoints.data(), &num_candidates};
  // Of exactly the size that is asked for, so that the address sanitizer sees what lies behind it.
  std::vector<std::byte> workspace(deploykit::nms::workspace_bytes(1, count, limits.topk, route));
  if (deploykit_nms_cuda(rows.data(), 0, 1, count, &layout, &limits, &out, workspace.data(), route, nullptr)) {
    return false;
  }

  const Choice usual{};
  std::vector<std::byte> memory(static_cast<size_t>(deploykit_nms_workspace(count, &layout, &limits, &usual)));
  std::vector<int64_t> kept(room), labels_of_host(room);
  std::vector<float> boxes_of_host(4 * room), scores_of_host(room);
  int64_t candidates = 0;
  const int64_t found = deploykit_nms(rows.data(), 0, count, layout.columns, 1, &layout, &limits, &usual, memory.data(),
      kept.data(), boxes_of_host.data(), scores_of_host.data(), labels_of_host.data(), &candidates);
  bool same = found == num_dets && candidates == num_candidates;
  for (int64_t i = 0; same && i < found; ++i) same = labels_of_host[i] == labels[i];
  const size_t used = same ? static_cast<size_t>(found) : 0;
  return same && !std::memcmp(boxes_of_host.data(), boxes.data(), 4 * used * sizeof(float)) &&
         !std::memcmp(scores_of_host.data(), scores.data(), used * sizeof(float));
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const int32_t count : {0, 1, 15, 16, 17, 100, 1000, 3000}) {
    for (const Route route : {Route::blocks, Route::spread}) {
      if (!agree(random, count, true, true, route) || !agree(random, count, false, true, route) ||
          !agree(random, count, true, false, route)) {
        std::printf("%d rows: they differ\n", count);
        return 1;
      }
    }
  }
  std::puts("every bit agrees");
  return 0;
}
