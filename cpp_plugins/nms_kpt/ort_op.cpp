// NmsKpt as a custom operator of ONNX Runtime on the CPU: the same node that the TensorRT plugin is for, by the code of
// the CPU library.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "attributes.h"
#include "common/onnxruntime.h"
#include "host.h"

namespace {

using deploykit::Half;
using deploykit::nms::Attributes;
using deploykit::nms::Choice;
using deploykit::nms::Found;
using deploykit::nms::Kept;
using deploykit::nms::Rows;
using deploykit::nms::Workspace;

Attributes attributes_of(const OrtKernelInfo* kernel) {
  const Ort::ConstKernelInfo info(kernel);
  const auto integer = [&](const char* name) { return static_cast<int32_t>(info.GetAttribute<int64_t>(name)); };
  Attributes attributes;
  attributes.conf = info.GetAttribute<float>("conf");
  attributes.iou = info.GetAttribute<float>("iou");
  attributes.max_det = integer("max_det");
  attributes.pre_nms_topk = integer("pre_nms_topk");
  attributes.num_classes = integer("num_classes");
  attributes.num_keypoints = integer("num_keypoints");
  attributes.kpt_dims = integer("kpt_dims");
  attributes.has_obj = integer("has_obj");
  attributes.cls_counts = static_cast<int32_t>(deploykit::ort::integer_or(kernel, "cls_counts", attributes.cls_counts));
  return attributes;
}

constexpr char name[] = "NmsKpt";

void require_axes(size_t axes) {
  if (axes == 3) return;
  throw std::invalid_argument("input rows must have three axes (batch, rows, columns), got " + std::to_string(axes));
}

class Kernel {
 public:
  explicit Kernel(const Attributes& attributes) : attributes_(attributes) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    return deploykit::ort::guarded(name, [&] {
      Ort::KernelContext context(raw);
      const Ort::ConstValue rows = context.GetInput(0);
      const auto info = rows.GetTensorTypeAndShapeInfo();
      const std::vector<int64_t> shape = info.GetShape();
      require_axes(shape.size());
      deploykit::require_valid(attributes_.columns_error(shape[2]));
      switch (info.GetElementType()) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
          fill(context, shape, static_cast<const float*>(rows.GetTensorRawData()));
          break;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
          fill(context, shape, static_cast<const Half*>(rows.GetTensorRawData()));
          break;
        default: throw std::invalid_argument("input rows must be float32 or float16");
      }
    });
  }

 private:
  // Outputs whose slots are zero, so that only the used ones are written.
  template <typename V>
  static V* zeros(Ort::KernelContext& context, size_t index, const std::vector<int64_t>& shape) {
    int64_t size = 1;
    for (const int64_t side : shape) size *= side;
    V* values = context.GetOutput(index, shape).GetTensorMutableData<V>();
    std::fill_n(values, size, V{});
    return values;
  }

  template <typename T>
  void fill(Ort::KernelContext& context, const std::vector<int64_t>& shape, const T* rows) const {
    const int64_t batch = shape[0], count = shape[1], columns = shape[2];
    const auto layout = attributes_.layout();
    const auto limits = attributes_.limits();
    const int64_t room = limits.max_det;
    const int64_t values = 3 * static_cast<int64_t>(layout.num_keypoints);
    auto* num_dets = zeros<int32_t>(context, 0, {batch, 1});
    auto* boxes = zeros<float>(context, 1, {batch, room, 4});
    auto* scores = zeros<float>(context, 2, {batch, room});
    auto* labels = zeros<int32_t>(context, 3, {batch, room});
    float* keypoints = values ? zeros<float>(context, 4, {batch, room, layout.num_keypoints, 3}) : nullptr;
    auto* num_candidates = zeros<int32_t>(context, values ? 5 : 4, {batch, 1});

    thread_local std::vector<std::byte> memory;  // from run to run; several threads may run one session
    constexpr Choice usual{};
    memory.resize(static_cast<size_t>(Workspace::bytes(count, layout, limits, usual)));
    Workspace work(memory.data(), count, layout, limits, usual);
    for (int64_t image = 0; image < batch; ++image) {
      const T* image_rows = rows + image * count * columns;
      const Rows<T> all{image_rows, count, columns, 1};
      const Found found = deploykit::nms::run(all, layout, limits, usual, work);
      num_dets[image] = static_cast<int32_t>(found.kept);
      num_candidates[image] = static_cast<int32_t>(found.candidates);
      for (int64_t i = 0; i < found.kept; ++i) {
        const int64_t slot = image * room + i;
        const Kept& one = work.kept[i];
        scores[slot] = one.score;
        labels[slot] = one.label;
        float* corners = boxes + 4 * slot;
        corners[0] = one.box.x1;
        corners[1] = one.box.y1;
        corners[2] = one.box.x2;
        corners[3] = one.box.y2;
        const T* row = image_rows + one.row * columns;
        for (int32_t v = 0; v < values; ++v) keypoints[values * slot + v] = keypoint_value(row, layout, v);
      }
    }
  }

  Attributes attributes_;
};

// Outputs 4 and 5, or 4 alone: keypoints are there or not, so the types after the labels follow from the attributes.
struct Operator : Ort::CustomOpBase<Operator, Kernel, true> {
  const char* GetName() const { return name; }

  size_t GetInputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }

  size_t GetOutputTypeCount() const { return 5; }

  ONNXTensorElementDataType GetOutputType(size_t index) const {
    if (index == 1 || index == 2) return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    return index == 4 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  }

  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return index == 4 ? INPUT_OUTPUT_VARIADIC : INPUT_OUTPUT_REQUIRED;
  }

  bool GetVariadicOutputHomogeneity() const { return false; }

  static OrtStatusPtr InferOutputShape(Ort::ShapeInferContext& context) noexcept {
    return deploykit::ort::guarded(name, [&] {
      const auto int32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
      const auto float32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
      const auto& rows = context.GetInputShape(0);
      require_axes(rows.size());
      const auto batch = rows[0];
      const int64_t room = context.GetAttrInt("max_det");
      const int64_t keypoints = context.GetAttrInt("num_keypoints");
      context.SetOutputShape(0, {batch, 1}, int32);
      context.SetOutputShape(1, {batch, room, 4}, float32);
      context.SetOutputShape(2, {batch, room}, float32);
      context.SetOutputShape(3, {batch, room}, int32);
      if (keypoints > 0) context.SetOutputShape(4, {batch, room, keypoints, 3}, float32);
      context.SetOutputShape(keypoints > 0 ? 5 : 4, {batch, 1}, int32);
    });
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return deploykit::ort::create_kernel<Kernel>(name, info, attributes_of, kernel);
  }
};

}  // namespace

const OrtCustomOp* deploykit::nms::onnxruntime_operator() {
  static const Operator op;
  return &op;
}
