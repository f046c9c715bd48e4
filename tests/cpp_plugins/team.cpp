// The kernels of nms_kpt, decode and letterbox on a CPU: a thread block becomes a team of threads that meet at a
// barrier, and stands behind the C interface of the CUDA library. So the algorithm of the kernels runs, and a thread
// sanitizer sees where a __syncthreads is missing, or where two blocks of a kernel touch one value. As a program
// (-DTEAM_MAIN) it runs one problem with teams of several sizes.
#include <pthread.h>

#include <algorithm>
#include <array>
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
#include "nms_kpt/launch_plan.h"
#include "nms_kpt/spread.cuh"

namespace {

using namespace deploykit::nms;
using deploykit::Half;

// All threads of a team are one warp: what a lane gives lies in a place of its own for all to read.
struct ThreadWarp {
  pthread_barrier_t* barrier;
  uint32_t number, size;
  uint32_t* given;

  uint32_t index() const { return 0; }
  uint32_t lane() const { return number; }
  uint32_t width() const { return size; }

  void sync() const {
    if (size > 1) pthread_barrier_wait(barrier);
  }

  // `result` of what each lane gives, in their order.
  template <typename Result, typename Combine>
  Result of_all(uint32_t value, Result result, Combine combine) const {
    given[number] = value;
    sync();
    for (uint32_t i = 0; i < size; ++i) result = combine(result, given[i], i);
    sync();
    return result;
  }

  uint32_t ballot(bool is) const {
    return of_all(is, 0u, [](uint32_t all, uint32_t one, uint32_t i) { return all | one << i; });
  }

  float greatest(float value) const {
    return of_all(deploykit::bits_of_float(value), value,
        [](float all, uint32_t one, uint32_t) { return greater(deploykit::float_of_bits(one), all); });
  }

  uint32_t lowest(uint32_t value) const {
    return of_all(value, value, [](uint32_t all, uint32_t one, uint32_t) { return one < all ? one : all; });
  }

  uint32_t sum(uint32_t value) const {
    return of_all(value, 0u, [](uint32_t all, uint32_t one, uint32_t) { return all + one; });
  }

  uint32_t reserve(uint32_t* counter, uint32_t n) const {
    const uint32_t before = number == 0 ? __atomic_fetch_add(counter, n, __ATOMIC_RELAXED) : 0;
    return of_all(before, 0u, [](uint32_t all, uint32_t one, uint32_t i) { return i == 0 ? one : all; });
  }
};

struct ThreadTeam {
  ThreadWarp own;

  uint32_t lane() const { return own.number; }
  uint32_t lanes() const { return own.size; }
  void sync() const { own.sync(); }
  uint32_t warps() const { return 1; }
  ThreadWarp warp() const { return own; }
  uint32_t next(uint32_t* counter) const { return __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED); }
  void tally(uint32_t* histogram, uint32_t digit) const { next(&histogram[digit]); }
  void merge(uint64_t* word, uint64_t bits) const { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
};

uint32_t team_size() {
  const char* text = std::getenv("TEAM_SIZE");
  return text ? static_cast<uint32_t>(std::atoi(text)) : 4;
}

// Run `work(team)` on every lane of so many teams, all at the same time; `work(team, number)` where it asks which.
template <typename Work>
void run_teams(uint32_t teams, Work work) {
  const uint32_t size = team_size();
  std::vector<pthread_barrier_t> barriers(teams);
  std::vector<std::vector<uint32_t>> given(teams, std::vector<uint32_t>(size));
  std::vector<std::thread> threads;
  for (uint32_t number = 0; number < teams; ++number) {
    pthread_barrier_init(&barriers[number], nullptr, size);
    for (uint32_t lane = 0; lane < size; ++lane) {
      threads.emplace_back([&, number, lane] {
        ThreadTeam team{{&barriers[number], lane, size, given[number].data()}};
        work(team, number);
      });
    }
  }
  for (auto& thread : threads) thread.join();
  for (auto& barrier : barriers) pthread_barrier_destroy(&barrier);
}

// A kernel: `work(team, block, scratch)` for each of `blocks`, on two multiprocessors at the same time. The scratch of
// a block holds nothing of the one before.
template <typename Shared, typename Work>
void run_kernel(uint32_t blocks, Work work) {
  constexpr uint32_t multiprocessors = 2;
  const uint32_t teams = std::min(blocks, multiprocessors);
  std::vector<Shared> scratch(teams);
  run_teams(teams, [&](ThreadTeam& team, uint32_t number) {
    for (uint32_t block = number; block < blocks; block += teams) {
      if (team.lane() == 0) std::memset(static_cast<void*>(&scratch[number]), 0xcc, sizeof(Shared));
      team.sync();
      work(team, block, scratch[number]);
      team.sync();
    }
  });
}

uint32_t shares(uint32_t count, uint32_t each) { return (count + each - 1) / each; }

struct Nothing {};

template <typename T>
void run_spread(const Batch<T>& batch, uint32_t images) {
  const uint32_t most = std::min(batch.topk(), batch.count);
  const uint32_t tiles = tiles_of(most);
  run_kernel<Selection>(
      images, [&](ThreadTeam& team, uint32_t image, Selection& scratch) { select_best(team, batch, image, scratch); });
  run_kernel<Nothing>(most * images,
      [&](ThreadTeam& team, uint32_t i, Nothing&) { place_candidates(team, batch, i % most, i / most); });
  run_kernel<std::array<Chosen, tile>>(
      tiles * tiles * images, [&](ThreadTeam& team, uint32_t i, std::array<Chosen, tile>& scratch) {
        mark_overlaps(team, batch, i % tiles, i / tiles % tiles, i / tiles / tiles, scratch.data());
      });
  run_kernel<Suppression>(
      images, [&](ThreadTeam& team, uint32_t image, Suppression& scratch) { scan_image(team, batch, image, scratch); });
}

template <typename T>
void run_batch(const Batch<T>& batch, uint32_t images, bool is_spread) {
  std::memset(batch.found, 0, sizeof(uint32_t) * images);
  const uint32_t blocks = shares(batch.count, rows_of_warp(batch.layout, team_size()));
  run_kernel<Nothing>(blocks * images,
      [&](ThreadTeam& team, uint32_t i, Nothing&) { score_rows(team, batch, i % blocks, i / blocks); });
  if (is_spread) {
    run_spread(batch, images);
  } else {
    run_kernel<Scratch>(
        images, [&](ThreadTeam& team, uint32_t image, Scratch& scratch) { finish_image(team, batch, image, scratch); });
  }
}

template <typename T>
void decode_batch(const void* const* levels, int32_t batch, const deploykit::decode::Head& head,
    const deploykit::decode::Grid& grid, float* rows) {
  using namespace deploykit::decode;
  auto scratch = std::make_unique<deploykit::decode::Scratch>();
  run_teams(1, [&](ThreadTeam& team, uint32_t) {
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

DEPLOYKIT_API int64_t deploykit_nms_cuda_workspace(int64_t batch, int64_t count, int32_t topk, Route route) {
  return static_cast<int64_t>(workspace_bytes(batch, count, topk, route));
}

DEPLOYKIT_API int32_t deploykit_nms_cuda_spreads(int64_t batch, int64_t count, int32_t multiprocessors) {
  return spreads(batch, count, multiprocessors);
}

// `automatic` chooses as on a GPU of 132 multiprocessors.
DEPLOYKIT_API int32_t deploykit_nms_cuda(const void* rows, int32_t half, int32_t batch, int32_t count,
    const Layout* layout, const Limits* limits, const Outputs* out, void* workspace, Route route, void*) {
  if (limits->topk > most_topk) return 1;  // cudaErrorInvalidValue
  const bool is_spread = route == Route::spread || (route == Route::automatic && spreads(batch, count, 132));
  const auto start = [&](const auto* typed) {
    const auto images = static_cast<uint32_t>(batch);
    run_batch(batch_of(typed, batch, count, *layout, *limits, *out, workspace, is_spread), images, is_spread);
  };
  if (half) {
    start(static_cast<const Half*>(rows));
  } else {
    start(static_cast<const float*>(rows));
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
  const int32_t count = 400;
  std::vector<float> rows(static_cast<size_t>(count) * layout.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t column = i % layout.columns;
    rows[i] = any(random) * (column < 2 ? 120.0f : column < 4 ? 50.0f : 1.0f);
  }
  const Limits limits{0.1f, 0.3f, 70, 200};  // more rows stay than a tile of 64 holds
  const auto room = static_cast<size_t>(limits.max_det);
  std::vector<int32_t> num_dets(1), labels(room), candidates(1);
  std::vector<float> boxes(4 * room), scores(room), keypoints(6 * room);
  const Outputs out{num_dets.data(), boxes.data(), scores.data(), labels.data(), keypoints.data(), candidates.data()};
  std::vector<std::byte> memory(
      static_cast<size_t>(deploykit_nms_cuda_workspace(1, count, limits.topk, Route::spread)));
  for (int run = 0; run < 100; ++run) {
    setenv("TEAM_SIZE", std::to_string(2 + run % 7).c_str(), 1);
    const Route route = run % 2 ? Route::spread : Route::blocks;
    if (deploykit_nms_cuda(rows.data(), 0, 1, count, &layout, &limits, &out, memory.data(), route, nullptr)) return 1;
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
