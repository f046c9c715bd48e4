// DecodeRows as a custom operator of ONNX Runtime on the CPU: the same node that the TensorRT plugin is for.
#include <string>
#include <vector>

#include "attributes.h"
#include "common/onnxruntime.h"
#include "host.h"

namespace {

using deploykit::Half;
using deploykit::decode::Attributes;
using deploykit::decode::Grid;

Attributes attributes_of(const OrtKernelInfo* kernel) {
  const Ort::ConstKernelInfo info(kernel);
  Attributes attributes;
  attributes.num_classes = static_cast<int32_t>(info.GetAttribute<int64_t>("num_classes"));
  attributes.num_keypoints = static_cast<int32_t>(info.GetAttribute<int64_t>("num_keypoints"));
  for (const int64_t stride : info.GetAttributes<int64_t>("strides")) {
    attributes.strides.push_back(static_cast<int32_t>(stride));
  }
  attributes.anchors = info.GetAttributes<float>("anchors");
  return attributes;
}

constexpr char name[] = "DecodeRows";

class Kernel {
 public:
  explicit Kernel(const Attributes& attributes) : attributes_(attributes) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    return deploykit::ort::guarded(name, [&] {
      Ort::KernelContext context(raw);
      int64_t batch = 0;
      const Grid grid = grid_of(context, &batch);
      const auto head = attributes_.head();
      const std::vector<int64_t> shape{batch, rows_of(head, grid), columns_of(head)};
      float* rows = context.GetOutput(0, shape).GetTensorMutableData<float>();
      switch (context.GetInput(0).GetTensorTypeAndShapeInfo().GetElementType()) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: fill<float>(context, grid, batch, rows); break;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: fill<Half>(context, grid, batch, rows); break;
        default: throw std::invalid_argument("inputs must all be float32, or all float16");
      }
    });
  }

 private:
  // The sizes of the inputs, which must be those of the levels; and their batch.
  Grid grid_of(const Ort::KernelContext& context, int64_t* batch) const {
    const int32_t levels = attributes_.levels();
    if (context.GetInputCount() != static_cast<size_t>(levels)) {
      throw std::invalid_argument(
          std::to_string(levels) + " inputs are expected, got " + std::to_string(context.GetInputCount()));
    }
    Grid grid{};
    for (int32_t i = 0; i < levels; ++i) {
      const auto shape = context.GetInput(i).GetTensorTypeAndShapeInfo().GetShape();
      if (shape.size() != 4) {
        throw std::invalid_argument("input " + std::to_string(i) +
                                    " must have four axes (batch, channels, height, width), got " +
                                    std::to_string(shape.size()));
      }
      deploykit::require_valid(attributes_.channels_error(i, shape[1]));
      if (i == 0) *batch = shape[0];
      if (shape[0] != *batch) throw std::invalid_argument("inputs must have the same batch");
      grid.height[i] = static_cast<int32_t>(shape[2]);
      grid.width[i] = static_cast<int32_t>(shape[3]);
    }
    return grid;
  }

  template <typename T>
  struct Job {
    deploykit::decode::Head head;
    Grid grid;
    std::vector<const T*> levels;
    float* rows;
  };

  // Images and levels are shared by ONNX Runtime's own threads.
  template <typename T>
  void fill(Ort::KernelContext& context, const Grid& grid, int64_t batch, float* rows) const {
    Job<T> job{attributes_.head(), grid, {}, rows};
    for (int32_t i = 0; i < job.head.levels; ++i) {
      job.levels.push_back(static_cast<const T*>(context.GetInput(i).GetTensorRawData()));
    }
    const auto one = [](void* data, size_t number) {
      const auto& shared = *static_cast<const Job<T>*>(data);
      const auto level = static_cast<int32_t>(number % shared.head.levels);
      const auto image = static_cast<int32_t>(number / shared.head.levels);
      decode_level(shared.head, shared.grid, level, image, shared.levels[level], shared.rows);
    };
    context.ParallelFor(one, static_cast<size_t>(batch) * job.head.levels, 0, &job);
  }

  Attributes attributes_;
};

struct Operator : Ort::CustomOpBase<Operator, Kernel, true> {
  const char* GetName() const { return name; }

  size_t GetInputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t) const { return INPUT_OUTPUT_VARIADIC; }
  bool GetVariadicInputHomogeneity() const { return true; }

  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return deploykit::ort::create_kernel<Kernel>(name, info, attributes_of, kernel);
  }
};

}  // namespace

const OrtCustomOp* deploykit::decode::onnxruntime_operator() {
  static const Operator op;
  return &op;
}
