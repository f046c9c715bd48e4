// NmsKpt as a TensorRT plugin (IPluginV3), for the headers of TensorRT 10 and 11.
#include <array>

#include "attributes.h"
#include "common/tensorrt.h"
#include "launch.h"

namespace {

using deploykit::nms::Attributes;
using deploykit::nms::Route;
using deploykit::trt::guarded;
using deploykit::trt::guarded_code;
using deploykit::trt::read_field;
using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// The fields in the order of Attributes; serialised and read back under the names of the ONNX attributes.
struct Fields {
  std::array<PluginField, 9> entries;
  PluginFieldCollection collection;

  // With a null pointer: names and types only, as a creator announces them.
  explicit Fields(const Attributes* values) {
    const auto field = [](const char* name, const void* data, PluginFieldType type) {
      return PluginField{name, data, type, 1};
    };
    constexpr auto float32 = PluginFieldType::kFLOAT32;
    constexpr auto int32 = PluginFieldType::kINT32;
    const Attributes* a = values;
    entries = {field("conf", a ? &a->conf : nullptr, float32), field("iou", a ? &a->iou : nullptr, float32),
        field("max_det", a ? &a->max_det : nullptr, int32),
        field("pre_nms_topk", a ? &a->pre_nms_topk : nullptr, int32),
        field("num_classes", a ? &a->num_classes : nullptr, int32),
        field("num_keypoints", a ? &a->num_keypoints : nullptr, int32),
        field("kpt_dims", a ? &a->kpt_dims : nullptr, int32), field("has_obj", a ? &a->has_obj : nullptr, int32),
        field("cls_counts", a ? &a->cls_counts : nullptr, int32)};
    collection.nbFields = static_cast<int32_t>(entries.size());
    collection.fields = entries.data();
  }

  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
};

class NmsKpt final : public deploykit::trt::Plugin<NmsKpt, Attributes, Fields> {
 public:
  static constexpr char name[] = "NmsKpt";

  using Plugin::Plugin;

  // Unknown attributes, such as plugin_version, are not looked at.
  static std::string read(const PluginFieldCollection& given, Attributes* into) {
    std::string problem;
    read_field(given, "conf", &into->conf, &problem);
    read_field(given, "iou", &into->iou, &problem);
    read_field(given, "max_det", &into->max_det, &problem);
    read_field(given, "pre_nms_topk", &into->pre_nms_topk, &problem);
    read_field(given, "num_classes", &into->num_classes, &problem);
    read_field(given, "num_keypoints", &into->num_keypoints, &problem);
    read_field(given, "kpt_dims", &into->kpt_dims, &problem);
    read_field(given, "has_obj", &into->has_obj, &problem);
    read_field(given, "cls_counts", &into->cls_counts, &problem, false);
    return problem;
  }

  int32_t getNbOutputs() const noexcept override { return attributes_.outputs(); }

  int32_t getOutputDataTypes(
      DataType* types, int32_t num_outputs, const DataType* inputs, int32_t num_inputs) const noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      if (inputs[0] != DataType::kFLOAT && inputs[0] != DataType::kHALF) {
        throw std::invalid_argument("input rows must be float32 or float16");
      }
      for (int32_t i = 0; i < num_outputs; ++i) types[i] = type_of_output(i);
    });
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*, int32_t,
      nvinfer1::DimsExprs* outputs, int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      if (inputs[0].nbDims != 3) {
        throw std::invalid_argument(
            "input rows must have three axes (batch, rows, columns), got " + std::to_string(inputs[0].nbDims));
      }
      const nvinfer1::IDimensionExpr* columns = inputs[0].d[2];
      if (columns->isConstant()) require_columns(columns->getConstantValue());
      const auto shape = [&](int32_t index, std::initializer_list<int64_t> sides) {
        outputs[index].nbDims = static_cast<int32_t>(sides.size()) + 1;
        outputs[index].d[0] = inputs[0].d[0];
        int32_t axis = 1;
        for (const int64_t side : sides) outputs[index].d[axis++] = builder.constant(side);
      };
      shape(0, {1});
      shape(1, {attributes_.max_det, 4});
      shape(2, {attributes_.max_det});
      shape(3, {attributes_.max_det});
      if (attributes_.num_keypoints > 0) shape(4, {attributes_.max_det, attributes_.num_keypoints, 3});
      shape(num_outputs - 1, {1});
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t num_inputs,
      int32_t num_outputs) noexcept override {
    return guarded(name, false, [&] {
      require_ports(num_inputs, num_outputs);
      if (position < 0 || position >= 1 + num_outputs) return false;
      const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
      if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
      if (position == 0) return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
      return tensor.type == type_of_output(position - 1);
    });
  }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
      const nvinfer1::DynamicPluginTensorDesc*, int32_t num_outputs) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      require_columns(inputs[0].max.d[2]);
    });
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
      const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override {
    const auto& most = inputs[0].max;
    return deploykit::nms::workspace_bytes(most.d[0], most.d[1], attributes_.pre_nms_topk, Route::automatic);
  }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs, const nvinfer1::PluginTensorDesc*,
      int32_t num_outputs) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      require_columns(inputs[0].dims.d[2]);
    });
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*, const void* const* in,
      void* const* out, void* workspace, cudaStream_t stream) noexcept override {
    const bool has_keypoints = attributes_.num_keypoints > 0;
    deploykit::nms::Outputs outputs{};
    outputs.num_dets = static_cast<int32_t*>(out[0]);
    outputs.boxes = static_cast<float*>(out[1]);
    outputs.scores = static_cast<float*>(out[2]);
    outputs.labels = static_cast<int32_t*>(out[3]);
    outputs.keypoints = has_keypoints ? static_cast<float*>(out[4]) : nullptr;
    outputs.num_candidates = static_cast<int32_t*>(out[has_keypoints ? 5 : 4]);
    const auto& dims = inputs[0].dims;
    return guarded_code(name, [&] {
      const cudaError_t code = deploykit::nms::launch(in[0], inputs[0].type == DataType::kHALF,
          static_cast<int32_t>(dims.d[0]), static_cast<int32_t>(dims.d[1]), attributes_.layout(), attributes_.limits(),
          outputs, workspace, Route::automatic, stream);
      deploykit::trt::require_cuda(code, "the kernels do not start");
    });
  }

 private:
  void require_ports(int32_t num_inputs, int32_t num_outputs) const {
    if (num_inputs == 1 && num_outputs == attributes_.outputs()) return;
    throw std::invalid_argument("one input and " + std::to_string(attributes_.outputs()) +
                                " outputs are expected, got " + std::to_string(num_inputs) + " and " +
                                std::to_string(num_outputs));
  }

  void require_columns(int64_t columns) const { deploykit::require_valid(attributes_.columns_error(columns)); }

  DataType type_of_output(int32_t index) const noexcept {
    const bool is_int32 = index == 0 || index == 3 || index == attributes_.outputs() - 1;
    return is_int32 ? DataType::kINT32 : DataType::kFLOAT;
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* deploykit::nms::creator() {
  static deploykit::trt::Creator<NmsKpt, Attributes, Fields> creator;
  return &creator;
}
