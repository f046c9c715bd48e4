// DecodeRows as a TensorRT plugin (IPluginV3), for the headers of TensorRT 10 and 11.
#include <array>

#include "attributes.h"
#include "common/tensorrt.h"
#include "launch.h"

namespace {

using deploykit::decode::Attributes;
using deploykit::decode::Grid;
using deploykit::trt::guarded;
using deploykit::trt::guarded_code;
using deploykit::trt::read_field;
using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// Serialised and read back under the names of the ONNX attributes.
struct Fields {
  std::array<PluginField, 4> entries;
  PluginFieldCollection collection;

  // With a null pointer: names and types only, as a creator announces them.
  explicit Fields(const Attributes* a) {
    const auto length = [](size_t count) { return static_cast<int32_t>(count); };
    entries = {PluginField{"num_classes", a ? &a->num_classes : nullptr, PluginFieldType::kINT32, 1},
        PluginField{"num_keypoints", a ? &a->num_keypoints : nullptr, PluginFieldType::kINT32, 1},
        PluginField{
            "strides", a ? a->strides.data() : nullptr, PluginFieldType::kINT32, a ? length(a->strides.size()) : 1},
        PluginField{
            "anchors", a ? a->anchors.data() : nullptr, PluginFieldType::kFLOAT32, a ? length(a->anchors.size()) : 1}};
    collection.nbFields = static_cast<int32_t>(entries.size());
    collection.fields = entries.data();
  }

  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
};

class DecodeRows final : public deploykit::trt::Plugin<DecodeRows, Attributes, Fields> {
 public:
  static constexpr char name[] = "DecodeRows";

  using Plugin::Plugin;

  // Unknown attributes, such as plugin_version, are not looked at.
  static std::string read(const PluginFieldCollection& given, Attributes* into) {
    std::string problem;
    read_field(given, "num_classes", &into->num_classes, &problem);
    read_field(given, "num_keypoints", &into->num_keypoints, &problem);
    read_field(given, "strides", &into->strides, &problem);
    read_field(given, "anchors", &into->anchors, &problem);
    return problem;
  }

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(
      DataType* types, int32_t num_outputs, const DataType* inputs, int32_t num_inputs) const noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      for (int32_t i = 0; i < num_inputs; ++i) {
        if ((inputs[i] != DataType::kFLOAT && inputs[i] != DataType::kHALF) || inputs[i] != inputs[0]) {
          throw std::invalid_argument("inputs must all be float32, or all float16");
        }
      }
      types[0] = DataType::kFLOAT;
    });
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*, int32_t,
      nvinfer1::DimsExprs* outputs, int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      const IDimensionExpr* cells = nullptr;
      for (int32_t i = 0; i < num_inputs; ++i) {
        if (inputs[i].nbDims != 4) {
          throw std::invalid_argument("input " + std::to_string(i) +
                                      " must have four axes (batch, channels, height, width), got " +
                                      std::to_string(inputs[i].nbDims));
        }
        const IDimensionExpr* channels = inputs[i].d[1];
        if (channels->isConstant()) require_channels(i, channels->getConstantValue());
        const IDimensionExpr* area = builder.operation(DimensionOperation::kPROD, *inputs[i].d[2], *inputs[i].d[3]);
        cells = cells ? builder.operation(DimensionOperation::kSUM, *cells, *area) : area;
      }
      const auto head = attributes_.head();
      outputs[0].nbDims = 3;
      outputs[0].d[0] = inputs[0].d[0];
      outputs[0].d[1] = builder.operation(DimensionOperation::kPROD, *cells, *builder.constant(head.anchors));
      outputs[0].d[2] = builder.constant(columns_of(head));
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t num_inputs,
      int32_t num_outputs) noexcept override {
    return guarded(name, false, [&] {
      require_ports(num_inputs, num_outputs);
      if (position < 0 || position > num_inputs) return false;
      const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
      if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
      if (position == num_inputs) return tensor.type == DataType::kFLOAT;
      if (position > 0) return tensor.type == tensors[0].desc.type;
      return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
    });
  }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
      const nvinfer1::DynamicPluginTensorDesc*, int32_t num_outputs) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      for (int32_t i = 0; i < num_inputs; ++i) require_channels(i, inputs[i].max.d[1]);
    });
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
      int32_t) const noexcept override {
    return 0;
  }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs, const nvinfer1::PluginTensorDesc*,
      int32_t num_outputs) noexcept override {
    return guarded_code(name, [&] {
      require_ports(num_inputs, num_outputs);
      for (int32_t i = 0; i < num_inputs; ++i) require_channels(i, inputs[i].dims.d[1]);
    });
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*, const void* const* in,
      void* const* out, void*, cudaStream_t stream) noexcept override {
    return guarded_code(name, [&] {
      Grid grid{};
      for (int32_t i = 0; i < attributes_.levels(); ++i) {
        grid.height[i] = static_cast<int32_t>(inputs[i].dims.d[2]);
        grid.width[i] = static_cast<int32_t>(inputs[i].dims.d[3]);
      }
      const cudaError_t code = deploykit::decode::launch(in, inputs[0].type == DataType::kHALF,
          static_cast<int32_t>(inputs[0].dims.d[0]), attributes_.head(), grid, static_cast<float*>(out[0]), stream);
      deploykit::trt::require_cuda(code, "the kernel does not start");
    });
  }

 private:
  void require_ports(int32_t num_inputs, int32_t num_outputs) const {
    if (num_inputs == attributes_.levels() && num_outputs == 1) return;
    throw std::invalid_argument(std::to_string(attributes_.levels()) + " inputs and one output are expected, got " +
                                std::to_string(num_inputs) + " and " + std::to_string(num_outputs));
  }

  void require_channels(int32_t level, int64_t channels) const {
    deploykit::require_valid(attributes_.channels_error(level, channels));
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* deploykit::decode::creator() {
  static deploykit::trt::Creator<DecodeRows, Attributes, Fields> creator;
  return &creator;
}
