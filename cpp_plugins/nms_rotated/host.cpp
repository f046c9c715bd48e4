// The C interface of the NMS of oriented boxes on the CPU; runtime/native/library.py calls it.
#include "kernel.cuh"

// Which of the boxes, the best first, have a box of the same label before them that is nearer than `limit`: `gone`
// becomes 1 there, and 0 elsewhere. `shapes` are seven rows of `count` values. Returns how many stay, or -1: a negative
// count.
DEPLOYKIT_API int64_t deploykit_rotated_suppress(
    const double* shapes, const int64_t* labels, int64_t count, double limit, uint8_t* gone) {
  using deploykit::rotated::Shape;
  if (count < 0) return -1;
  const deploykit::rotated::Shapes all{shapes, count};
  int64_t stay = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Shape one = all.at(i);
    bool is_near = false;
    for (int64_t j = 0; j < i && !is_near; ++j) {
      is_near = labels[j] == labels[i] && are_near(one, all.at(j), limit);
    }
    gone[i] = is_near;
    stay += !is_near;
  }
  return stay;
}
