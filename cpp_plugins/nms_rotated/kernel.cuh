// NMS of oriented boxes: the distance of runtime/postprocess/rotated_nms.py. Knows no TensorRT and no ONNX Runtime
// type.
//
// Arithmetic is float64 in the order written here and there, without fused multiply-adds, so that only the logarithm
// may differ in its last bit.
#pragma once

#include <cmath>

#include "common/portable.h"

namespace deploykit {
namespace rotated {

// A box as the distance takes it: its centre, the variances along its sides (NaN: it has no area), the root of their
// product, and the cosine and sine of its angle.
struct Shape {
  double x, y, across_w, across_h, root, cos, sin;
};

// Shapes by column, as numpy has them: seven rows of `count` values.
struct Shapes {
  const double* values;
  int64_t count;

  Shape at(int64_t i) const {
    const double* v = values + i;
    return Shape{v[0], v[count], v[2 * count], v[3 * count], v[4 * count], v[5 * count], v[6 * count]};
  }
};

// The part of det(S) apart(D) that one of the two boxes gives, for centres x and y apart.
DEPLOYKIT_HOST_DEVICE double apart_by(const Shape& one, double x, double y) {
  const double along = x * one.cos + y * one.sin;
  const double across = y * one.cos - x * one.sin;
  return one.across_h * (along * along) + one.across_w * (across * across);
}

// Whether two boxes are nearer than `limit`. The first term alone decides most pairs: the second is not negative but
// for rounding, which is far below the slack.
DEPLOYKIT_HOST_DEVICE bool are_near(const Shape& a, const Shape& b, double limit) {
  constexpr double slack = 1e-9;
  const double cos = a.cos * b.cos + a.sin * b.sin;
  const double sin = a.sin * b.cos - a.cos * b.sin;
  double det = a.across_w * a.across_h + b.across_w * b.across_h;
  det = det + (a.across_w * b.across_h + a.across_h * b.across_w) * (cos * cos);
  det = det + (a.across_w * b.across_w + a.across_h * b.across_h) * (sin * sin);
  const double x = a.x - b.x;
  const double y = a.y - b.y;
  const double apart = (apart_by(a, x, y) + apart_by(b, x, y)) / det / 4;
  if (apart > limit + slack) return false;
  const double distance = apart + std::log(det / (4 * a.root * b.root)) / 2;
  return distance < 0 ? 0 < limit : distance < limit;  // NaN is not near
}

}  // namespace rotated
}  // namespace deploykit
