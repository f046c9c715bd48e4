// The attributes of the ONNX node NmsKpt, as README.md freezes them: read one way by TensorRT and ONNX Runtime.
#pragma once

#include <string>

#include "kernel.cuh"

namespace deploykit {
namespace nms {

struct Attributes {
  float conf = 0.0f;
  float iou = 0.0f;
  int32_t max_det = 0;
  int32_t pre_nms_topk = 0;
  int32_t num_classes = 0;
  int32_t num_keypoints = 0;
  int32_t kpt_dims = 0;
  int32_t has_obj = 0;
  int32_t cls_counts = 1;  // the only one that may be missing

  Layout layout() const { return packed_layout(num_classes, num_keypoints, kpt_dims, has_obj != 0, cls_counts != 0); }

  Limits limits() const { return Limits{conf, iou, max_det, pre_nms_topk}; }

  int32_t outputs() const { return num_keypoints > 0 ? 6 : 5; }

  // What is wrong with them, or nothing.
  std::string validation_error() const {
    const auto outside = [](const char* name, double value, const char* range) {
      std::string text = std::to_string(value);
      text.erase(text.find_last_not_of('0') + 1);
      if (text.back() == '.') text.pop_back();
      return std::string("attribute ") + name + " must be " + range + ", got " + text;
    };
    if (!(conf >= 0.0f && conf <= 1.0f)) return outside("conf", conf, "in 0..1");
    if (!(iou >= 0.0f && iou <= 1.0f)) return outside("iou", iou, "in 0..1");
    if (max_det < 1) return outside("max_det", max_det, "at least 1");
    if (pre_nms_topk < 1 || pre_nms_topk > most_topk) return outside("pre_nms_topk", pre_nms_topk, "in 1..3840");
    if (num_classes < 1) return outside("num_classes", num_classes, "at least 1");
    if (num_keypoints < 0) return outside("num_keypoints", num_keypoints, "at least 0");
    if (kpt_dims != 2 && kpt_dims != 3) return outside("kpt_dims", kpt_dims, "2 or 3");
    if (has_obj != 0 && has_obj != 1) return outside("has_obj", has_obj, "0 or 1");
    if (cls_counts != 0 && cls_counts != 1) return outside("cls_counts", cls_counts, "0 or 1");
    if (!cls_counts && (!has_obj || num_classes != 1)) {
      return outside("cls_counts", cls_counts, "1 unless has_obj is 1 and num_classes is 1");
    }
    return {};
  }

  // Rows with so many columns, or what is wrong with them.
  std::string columns_error(int64_t columns) const {
    if (columns == layout().columns) return {};
    return "input rows must have " + std::to_string(layout().columns) + " columns (num_classes " +
           std::to_string(num_classes) + ", num_keypoints " + std::to_string(num_keypoints) + ", kpt_dims " +
           std::to_string(kpt_dims) + ", has_obj " + std::to_string(has_obj) + "), got " + std::to_string(columns);
  }
};

}  // namespace nms
}  // namespace deploykit
