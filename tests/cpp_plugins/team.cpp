// The kernels of nms_kpt, decode and letterbox on a CPU: a thread block becomes a team of threads that meet at a
// barrier, and stands behind the C interface of the CUDA library. So the algorithm of the kernels runs, and a thread
// sanitizer sees where a __syncthreads is missing. As a program (-DTEAM_MAIN) it runs one problem with teams of several
// sizes.
#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "decode/kernel.cuh"
#include "letterbox/kernel.cuh"
#include "nms_kpt/kernel.cuh"

namespace {

using namespace deploykit::nms;
using deploykit::Half;

struct ThreadTeam {
  pthread_barrier_t* barrier;
  uint32_t index, size;

  uint32_t lane() const { return index; }
  uint32_t lanes() const { return size; }
  void sync() const {
    if (size > 1) pthread_barrier_wait(barrier);
  }
  void add(uint32_t* counter, uint32_t value) const { __atomic_fetch_add(counter, value, __ATOMIC_RELAXED); }
  uint32_t next(uint32_t* counter) const { return __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED); }
};

uint32_t team_size() {
  const char* text = std::getenv("TEAM_SIZE");
  return text ? static_cast<uint32_t>(std::atoi(text)) : 4;
}

// Run `work(team)` on every lane of a team.
template <typename Work>
void run_team(Work work) {
  const uint32_t size = team_size();
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, size);
  std::vector<std::thread> threads;
  for (uint32_t lane = 0; lane < size; ++lane) {
    threads.emplace_back([&, lane] {
      ThreadTeam team{&barrier, lane, size};
      work(team);
    });
  }
  for (auto& thread : threads) thread.join();
  pthread_barrier_destroy(&barrier);
}

template <typename T>
void run_image(const T* rows, uint32_t count, const Layout& layout, const Limits& limits, const Outputs& out) {
  std::vector<uint64_t> keys(count);
  std::vector<Chosen> chosen(limits.topk);
  auto scratch = std::make_unique<Scratch>();
  uint32_t found = 0;
  // Backwards, because on a GPU the order in which candidates are appended is any.
  for (uint32_t number = count; number-- > 0;) {
    const T* row = rows + static_cast<int64_t>(number) * layout.columns;
    uint64_t key;
    if (is_candidate(row, layout, limits.conf, number, &key)) keys[found++] = key;
  }
  run_team([&](ThreadTeam& team) {
    finish_image(team, rows, layout.columns, layout, limits, keys.data(), found, chosen.data(), *scratch, out);
  });
}

template <typename T>
void run_batch(
    const T* rows, int32_t batch, int32_t count, const Layout& layout, const Limits& limits, const Outputs& out) {
  for (int32_t image = 0; image < batch; ++image) {
    const Outputs mine = outputs_of_image(out, image, layout, limits);
    run_image(rows + static_cast<size_t>(image) * count * layout.columns, count, layout, limits, mine);
  }
}

template <typename T>
void decode_batch(const void* const* levels, int32_t batch, const deploykit::decode::Head& head,
    const deploykit::decode::Grid& grid, float* rows) {
  using namespace deploykit::decode;
  auto scratch = std::make_unique<deploykit::decode::Scratch>();
  run_team([&](ThreadTeam& team) {
    for (int32_t image = 0; image < batch; ++image) {
      for (int32_t level = 0; level < head.levels; ++level) {
        for (int32_t anchor = 0; anchor < head.anchors; ++anchor) {
          const auto plane = plane_of(head, grid, level, anchor, image, static_cast<const T*>(levels[level]), rows);
          for (int32_t first = 0; first < plane.cells; first += tile_cells) {
            decode_tile(team, head, plane, first, *scratch);
          }
        }
      }
    }
  });
}

template <typename T>
void fill_canvas(const deploykit::letterbox::Plan& plan, const uint8_t* source, int64_t pitch, const T* table, T* out) {
  const size_t plane = static_cast<size_t>(plan.canvas_height) * plan.canvas_width;
  for (int32_t y = 0; y < plan.canvas_height; ++y) {
    for (int32_t x = 0; x < plan.canvas_width; ++x) {
      const auto pixel = deploykit::letterbox::canvas_pixel(plan, source, pitch, x, y);
      for (int32_t c = 0; c < 3; ++c) {
        out[c * plane + static_cast<size_t>(y) * plan.canvas_width + x] = table[256 * c + pixel.values[c]];
      }
    }
  }
}

}  // namespace

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API int64_t deploykit_nms_cuda_workspace(int64_t, int64_t, int32_t) { return 1; }

DEPLOYKIT_API int32_t deploykit_nms_cuda(const void* rows, int32_t half, int32_t batch, int32_t count,
    const Layout* layout, const Limits* limits, const Outputs* out, void*, void*) {
  if (limits->topk > most_topk) return 1;  // cudaErrorInvalidValue
  if (half) {
    run_batch(static_cast<const Half*>(rows), batch, count, *layout, *limits, *out);
  } else {
    run_batch(static_cast<const float*>(rows), batch, count, *layout, *limits, *out);
  }
  return 0;
}

DEPLOYKIT_API int32_t deploykit_decode_cuda(const void* const* levels, int32_t half, int32_t batch,
    const deploykit::decode::Head* head, const deploykit::decode::Grid* grid, float* rows, void*) {
  if (half) {
    decode_batch<Half>(levels, batch, *head, *grid, rows);
  } else {
    decode_batch<float>(levels, batch, *head, *grid, rows);
  }
  return 0;
}

DEPLOYKIT_API int32_t deploykit_letterbox_cuda(const deploykit::letterbox::Plan* plans, const uint8_t* const* sources,
    const int64_t* pitches, int32_t count, const void* table, int32_t half, void* out, void*) {
  const size_t size = 3 * static_cast<size_t>(plans[0].canvas_height) * plans[0].canvas_width;
  for (int32_t i = 0; i < count; ++i) {
    if (half) {
      fill_canvas(plans[i], sources[i], pitches[i], static_cast<const uint16_t*>(table),
          static_cast<uint16_t*>(out) + size * i);
    } else {
      fill_canvas(
          plans[i], sources[i], pitches[i], static_cast<const float*>(table), static_cast<float*>(out) + size * i);
    }
  }
  return 0;
}

#ifdef TEAM_MAIN
// One problem many times, with teams of several sizes: whether the sanitizer sees a race depends on the schedule.
int main() {
  const Layout layout = packed_layout(2, 2, 3, true, true);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> any(0.0f, 1.0f);
  const int32_t count = 150;
  std::vector<float> rows(static_cast<size_t>(count) * layout.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t column = i % layout.columns;
    rows[i] = any(random) * (column < 2 ? 60.0f : column < 4 ? 50.0f : 1.0f);
  }
  const Limits limits{0.1f, 0.4f, 20, 60};
  std::vector<int32_t> num_dets(1), labels(20), candidates(1);
  std::vector<float> boxes(80), scores(20), keypoints(20 * 6);
  const Outputs out{num_dets.data(), boxes.data(), scores.data(), labels.data(), keypoints.data(), candidates.data()};
  for (int run = 0; run < 100; ++run) {
    setenv("TEAM_SIZE", std::to_string(2 + run % 7).c_str(), 1);
    if (deploykit_nms_cuda(rows.data(), 0, 1, count, &layout, &limits, &out, nullptr, nullptr)) return 1;
  }
  std::printf("%d candidates, %d kept\n", candidates[0], num_dets[0]);

  deploykit::decode::Head head{1, 2, 60, 3, {8.0f}, {{{10.0f, 13.0f}, {16.0f, 30.0f}}}};
  const deploykit::decode::Grid grid{{7}, {9}};
  const std::vector<float> raw(2 * 74 * 63, 0.5f);
  std::vector<float> decoded(2 * 63 * 74);
  const void* const levels[] = {raw.data()};
  for (int run = 0; run < 20; ++run) {
    setenv("TEAM_SIZE", std::to_string(2 + run % 7).c_str(), 1);
    deploykit_decode_cuda(levels, 0, 1, &head, &grid, decoded.data(), nullptr);
  }
  return num_dets[0] == limits.max_det ? 0 : 1;
}
#endif
