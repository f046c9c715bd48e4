// The contract of the TensorRT plugin without TensorRT: loads the built library as TensorRT does (setLoggerFinder, then
// getCreators) and drives it through the headers' interfaces. What a failure is, is printed, and ends with 1.
#include <NvInfer.h>
#include <NvInferPlugin.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace nv = nvinfer1;

// How many allocations still succeed, in this program and in the library, whose operator new is this one.
static int64_t allocations_left = std::numeric_limits<int64_t>::max();

void* operator new(size_t size) {
  if (allocations_left-- <= 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

int failures = 0;

#define EXPECT(condition)                                        \
  do {                                                           \
    if (!(condition)) {                                          \
      std::printf("FAILED line %d: %s\n", __LINE__, #condition); \
      ++failures;                                                \
    }                                                            \
  } while (false)

struct Logger final : nv::ILogger {
  std::string last;
  void log(Severity severity, const char* text) noexcept override {
    EXPECT(severity == Severity::kERROR);
    const int64_t left = std::exchange(allocations_left, std::numeric_limits<int64_t>::max());
    last = text;
    allocations_left = left;
  }
};

struct Finder final : nv::ILoggerFinder {
  Logger logger;
  nv::ILogger* findLogger() override { return &logger; }
};

// TensorRT's own expressions are not virtual but forward to an implementation: so does a stand-in, to itself.
struct Side final : nv::IDimensionExpr, nv::apiv::VDimensionExpr {
  explicit Side(int64_t value, bool is_known = true) : value(value), is_known(is_known) { mImpl = this; }
  bool isConstant() const override { return is_known; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
  int64_t value;
  bool is_known;
};

struct Builder final : nv::IExprBuilder, nv::apiv::VExprBuilder {
  Builder() { mImpl = this; }
  const nv::IDimensionExpr* constant(int64_t value) override {
    sides.emplace_back(value);
    return &sides.back();
  }
  const nv::IDimensionExpr* operation(
      nv::DimensionOperation op, const nv::IDimensionExpr& a, const nv::IDimensionExpr& b) override {
    EXPECT(op == nv::DimensionOperation::kSUM || op == nv::DimensionOperation::kPROD);
    const int64_t x = a.getConstantValue(), y = b.getConstantValue();
    sides.emplace_back(op == nv::DimensionOperation::kSUM ? x + y : x * y, a.isConstant() && b.isConstant());
    return &sides.back();
  }
  const nv::IDimensionExpr* declareSizeTensor(int32_t, const nv::IDimensionExpr&, const nv::IDimensionExpr&) override {
    std::abort();
  }
  std::deque<Side> sides;
};

struct Values {
  float conf = 0.25f, iou = 0.45f;
  int32_t max_det = 100, pre_nms_topk = 1000, num_classes = 2, num_keypoints = 5, kpt_dims = 3, has_obj = 1;
  int32_t cls_counts = -1;  // not written

  std::vector<nv::PluginField> fields() const {
    using Type = nv::PluginFieldType;
    // In another order than the plugin's own, and with what the ONNX parser adds.
    std::vector<nv::PluginField> all = {{"plugin_version", "1", Type::kCHAR, 1}, {"has_obj", &has_obj, Type::kINT32, 1},
        {"kpt_dims", &kpt_dims, Type::kINT32, 1}, {"num_keypoints", &num_keypoints, Type::kINT32, 1},
        {"num_classes", &num_classes, Type::kINT32, 1}, {"pre_nms_topk", &pre_nms_topk, Type::kINT32, 1},
        {"max_det", &max_det, Type::kINT32, 1}, {"iou", &iou, Type::kFLOAT32, 1}, {"conf", &conf, Type::kFLOAT32, 1},
        {"plugin_namespace", "deploykit", Type::kCHAR, 9}};
    if (cls_counts >= 0) all.push_back({"cls_counts", &cls_counts, Type::kINT32, 1});
    return all;
  }
};

struct Plugin {
  std::unique_ptr<nv::IPluginV3> plugin;
  nv::IPluginV3OneCore* core = nullptr;
  nv::IPluginV3OneBuild* build = nullptr;
  nv::IPluginV3OneRuntime* runtime = nullptr;

  explicit Plugin(nv::IPluginV3* made) : plugin(made) {
    if (!made) return;
    core = static_cast<nv::IPluginV3OneCore*>(made->getCapabilityInterface(nv::PluginCapabilityType::kCORE));
    build = static_cast<nv::IPluginV3OneBuild*>(made->getCapabilityInterface(nv::PluginCapabilityType::kBUILD));
    runtime = static_cast<nv::IPluginV3OneRuntime*>(made->getCapabilityInterface(nv::PluginCapabilityType::kRUNTIME));
  }
};

nv::IPluginV3* make(nv::IPluginCreatorV3One* creator, const std::vector<nv::PluginField>& fields,
    nv::TensorRTPhase phase = nv::TensorRTPhase::kBUILD) {
  const nv::PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("nms", &given, phase);
}

std::string shape_of(const nv::DimsExprs& dims) {
  std::string text;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    text += (i ? "x" : "") + (dims.d[i]->isConstant() ? std::to_string(dims.d[i]->getConstantValue()) : "batch");
  }
  return text;
}

nv::DynamicPluginTensorDesc described(
    nv::DataType type, std::vector<int64_t> sides, nv::TensorFormat format = nv::TensorFormat::kLINEAR) {
  nv::DynamicPluginTensorDesc tensor{};
  tensor.desc.type = type;
  tensor.desc.format = format;
  tensor.desc.dims.nbDims = static_cast<int32_t>(sides.size());
  for (size_t i = 0; i < sides.size(); ++i) tensor.desc.dims.d[i] = sides[i];
  tensor.min = tensor.max = tensor.opt = tensor.desc.dims;
  return tensor;
}

void check_creator(nv::IPluginCreatorV3One* creator, const char* name, const char* fields) {
  EXPECT(!std::strcmp(creator->getPluginName(), name));
  EXPECT(!std::strcmp(creator->getPluginVersion(), "1"));
  EXPECT(!std::strcmp(creator->getPluginNamespace(), "deploykit"));
  const nv::PluginFieldCollection* names = creator->getFieldNames();
  std::string text;
  for (int32_t i = 0; i < names->nbFields; ++i) text += std::string(i ? " " : "") + names->fields[i].name;
  EXPECT(text == fields);
  std::printf("creator: %s 1 deploykit; fields: %s\n", name, text.c_str());
}

void check_shapes(nv::IPluginCreatorV3One* creator, int32_t keypoints, const std::string& expected) {
  Values values;
  values.num_keypoints = keypoints;
  const Plugin made(make(creator, values.fields()));
  EXPECT(made.core && made.build && made.runtime);
  if (!made.build) return;
  const int32_t outputs = made.build->getNbOutputs();
  EXPECT(outputs == (keypoints ? 6 : 5));

  Builder builder;
  const Side batch(-1, false), rows(8400), columns(7 + 3 * keypoints);
  nv::DimsExprs input{};
  input.nbDims = 3;
  input.d[0] = &batch;
  input.d[1] = &rows;
  input.d[2] = &columns;
  std::vector<nv::DimsExprs> shapes(outputs);
  nv::IExprBuilder& base = builder;
  EXPECT(made.build->getOutputShapes(&input, 1, nullptr, 0, shapes.data(), outputs, base) == 0);
  std::vector<nv::DataType> types(outputs);
  const nv::DataType half = nv::DataType::kHALF;
  EXPECT(made.build->getOutputDataTypes(types.data(), outputs, &half, 1) == 0);
  std::string text;
  for (int32_t i = 0; i < outputs; ++i) {
    text += (i ? ", " : "") + shape_of(shapes[i]) + (types[i] == nv::DataType::kINT32 ? " int32" : " float32");
  }
  EXPECT(text == expected);
  std::printf("outputs with %d keypoints: %s\n", keypoints, text.c_str());
}

void check_formats(nv::IPluginCreatorV3One* creator) {
  const Plugin made(make(creator, Values().fields()));
  const auto supports = [&](nv::DataType input, nv::DataType boxes, nv::TensorFormat format, int32_t position) {
    std::vector<nv::DynamicPluginTensorDesc> tensors{described(input, {1, 10, 22}, format)};
    for (int32_t i = 0; i < 6; ++i) {
      const bool is_int32 = i == 0 || i == 3 || i == 5;
      tensors.push_back(described(is_int32 ? nv::DataType::kINT32 : boxes, {1, 1}));
    }
    return made.build->supportsFormatCombination(position, tensors.data(), 1, 6);
  };
  constexpr auto fp32 = nv::DataType::kFLOAT, fp16 = nv::DataType::kHALF, int8 = nv::DataType::kINT8;
  constexpr auto linear = nv::TensorFormat::kLINEAR, packed = nv::TensorFormat::kCHW32;
  EXPECT(supports(fp32, fp32, linear, 0));
  EXPECT(supports(fp16, fp32, linear, 0));
  EXPECT(!supports(int8, fp32, linear, 0));
  EXPECT(!supports(fp32, fp32, packed, 0));
  for (int32_t position = 1; position <= 6; ++position) EXPECT(supports(fp16, fp32, linear, position));
  EXPECT(!supports(fp16, fp16, linear, 2));
  EXPECT(!supports(fp32, fp32, linear, 7));
  std::printf("formats: float32 and float16 rows, linear\n");
}

void check_round_trip(nv::IPluginCreatorV3One* creator) {
  Values values;
  values.conf = 0.125f;
  values.num_keypoints = 17;
  values.num_classes = 1;
  values.cls_counts = 0;
  const Plugin first(make(creator, values.fields()));
  const std::unique_ptr<nv::IPluginV3> copy(first.plugin->clone());
  first.runtime->getFieldsToSerialize();
  const Plugin cloned(first.runtime->attachToContext(nullptr));
  const nv::PluginFieldCollection* kept = cloned.runtime->getFieldsToSerialize();
  const std::vector<nv::PluginField> fields(kept->fields, kept->fields + kept->nbFields);
  EXPECT(fields.size() == 9);
  const Plugin second(make(creator, fields, nv::TensorRTPhase::kRUNTIME));
  EXPECT(second.runtime);
  if (!second.runtime) return;
  const nv::PluginFieldCollection* again = second.runtime->getFieldsToSerialize();
  for (int32_t i = 0; i < again->nbFields; ++i) {
    EXPECT(!std::strcmp(again->fields[i].name, fields[i].name) && again->fields[i].length == 1);
    EXPECT(!std::memcmp(again->fields[i].data, fields[i].data, 4));
  }
  EXPECT(*static_cast<const float*>(again->fields[0].data) == 0.125f);
  EXPECT(*static_cast<const int32_t*>(again->fields[5].data) == 17);
  EXPECT(*static_cast<const int32_t*>(again->fields[8].data) == 0);
  EXPECT(!std::strcmp(second.core->getPluginName(), "NmsKpt"));

  const auto rows = described(nv::DataType::kFLOAT, {4, 57375, 57});
  std::vector<nv::DynamicPluginTensorDesc> outputs(6);
  EXPECT(second.build->configurePlugin(&rows, 1, outputs.data(), 6) == 0);
  std::vector<nv::PluginTensorDesc> plain(6);
  EXPECT(second.runtime->onShapeChange(&rows.desc, 1, plain.data(), 6) == 0);
  const size_t size = second.build->getWorkspaceSize(&rows, 1, outputs.data(), 6);
  // Keys of all rows; of a thousand candidates two keys, the box with its label, and a bit for each pair.
  constexpr size_t expected = 4 * (57375 * 8 + 1000 * (2 * 8 + 24) + 1024 * 1024 / 8);
  EXPECT(size >= expected);
  EXPECT(size < expected + 6 * 256);
  std::printf("round trip of the fields, clone and workspace (%zu bytes for 4 x 57375 rows)\n", size);
}

void check_errors(nv::IPluginCreatorV3One* creator, Logger& logger) {
  const auto refuses = [&](Values values, const std::string& text) {
    logger.last.clear();
    const std::unique_ptr<nv::IPluginV3> made(make(creator, values.fields()));
    EXPECT(!made && logger.last == "NmsKpt: " + text);
    if (logger.last != "NmsKpt: " + text) std::printf("  said: %s\n", logger.last.c_str());
    std::printf("error: %s\n", logger.last.c_str());
  };
  Values values;
  values.iou = 1.5f;
  refuses(values, "attribute iou must be in 0..1, got 1.5");
  values = Values();
  values.pre_nms_topk = 3841;
  refuses(values, "attribute pre_nms_topk must be in 1..3840, got 3841");
  values = Values();
  values.kpt_dims = 4;
  refuses(values, "attribute kpt_dims must be 2 or 3, got 4");
  values = Values();
  values.cls_counts = 0;
  refuses(values, "attribute cls_counts must be 1 unless has_obj is 1 and num_classes is 1, got 0");
  values.num_classes = 1;
  EXPECT(Plugin(make(creator, values.fields())).plugin);
  values.cls_counts = 2;
  refuses(values, "attribute cls_counts must be 0 or 1, got 2");

  auto fields = Values().fields();
  fields.erase(fields.begin() + 5);
  EXPECT(!make(creator, fields));
  EXPECT(logger.last == "NmsKpt: attribute pre_nms_topk is missing");
  fields = Values().fields();
  fields[8].type = nv::PluginFieldType::kINT32;
  EXPECT(!make(creator, fields));
  EXPECT(logger.last == "NmsKpt: attribute conf has another type than README.md says");
  EXPECT(!creator->createPlugin("nms", nullptr, nv::TensorRTPhase::kBUILD));

  const Plugin made(make(creator, Values().fields()));
  const auto rows = described(nv::DataType::kFLOAT, {1, 100, 57});
  std::vector<nv::DynamicPluginTensorDesc> outputs(6);
  EXPECT(made.build->configurePlugin(&rows, 1, outputs.data(), 6) != 0);
  EXPECT(logger.last ==
         "NmsKpt: input rows must have 22 columns (num_classes 2, num_keypoints 5, kpt_dims 3, has_obj 1), got 57");
  std::printf("error: %s\n", logger.last.c_str());
  EXPECT(made.build->configurePlugin(&rows, 1, outputs.data(), 5) != 0);
  EXPECT(logger.last == "NmsKpt: one input and 6 outputs are expected, got 1 and 5");
}

// ---- DecodeRows

struct DecodeValues {
  int32_t num_classes = 2, num_keypoints = 3;
  std::vector<int32_t> strides{8, 16};
  std::vector<float> anchors{10, 13, 16, 30, 62, 45, 59, 119};

  std::vector<nv::PluginField> fields() const {
    using Type = nv::PluginFieldType;
    return {{"anchors", anchors.data(), Type::kFLOAT32, static_cast<int32_t>(anchors.size())},
        {"plugin_version", "1", Type::kCHAR, 1}, {"num_keypoints", &num_keypoints, Type::kINT32, 1},
        {"strides", strides.data(), Type::kINT32, static_cast<int32_t>(strides.size())},
        {"num_classes", &num_classes, Type::kINT32, 1}, {"plugin_namespace", "deploykit", Type::kCHAR, 9}};
  }
};

void check_decode_shapes(nv::IPluginCreatorV3One* creator) {
  const Plugin made(make(creator, DecodeValues().fields()));
  EXPECT(made.build && made.build->getNbOutputs() == 1);
  if (!made.build) return;
  Builder builder;
  const Side batch(-1, false), channels(32), eight(8), four(4);
  nv::DimsExprs inputs[2]{};
  const Side* sides[2][4] = {{&batch, &channels, &eight, &eight}, {&batch, &channels, &four, &four}};
  for (int32_t i = 0; i < 2; ++i) {
    inputs[i].nbDims = 4;
    for (int32_t d = 0; d < 4; ++d) inputs[i].d[d] = sides[i][d];
  }
  nv::DimsExprs output{};
  nv::IExprBuilder& base = builder;
  EXPECT(made.build->getOutputShapes(inputs, 2, nullptr, 0, &output, 1, base) == 0);
  EXPECT(shape_of(output) == "batchx160x16");
  const nv::DataType halves[] = {nv::DataType::kHALF, nv::DataType::kHALF};
  nv::DataType type{};
  EXPECT(made.build->getOutputDataTypes(&type, 1, halves, 2) == 0 && type == nv::DataType::kFLOAT);
  std::printf("rows of two levels, 8x8 and 4x4, 2 anchors: %s float32\n", shape_of(output).c_str());
}

void check_decode_formats(nv::IPluginCreatorV3One* creator) {
  const Plugin made(make(creator, DecodeValues().fields()));
  const auto supports = [&](nv::DataType first, nv::DataType second, nv::DataType rows, int32_t position) {
    const nv::DynamicPluginTensorDesc tensors[] = {
        described(first, {1, 32, 8, 8}), described(second, {1, 32, 4, 4}), described(rows, {1, 160, 16})};
    return made.build->supportsFormatCombination(position, tensors, 2, 1);
  };
  constexpr auto fp32 = nv::DataType::kFLOAT, fp16 = nv::DataType::kHALF, int8 = nv::DataType::kINT8;
  for (int32_t position = 0; position < 3; ++position) {
    EXPECT(supports(fp32, fp32, fp32, position) && supports(fp16, fp16, fp32, position));
  }
  EXPECT(!supports(int8, fp32, fp32, 0) && !supports(fp32, fp16, fp32, 1) && !supports(fp16, fp16, fp16, 2));
  EXPECT(!supports(fp32, fp32, fp32, 3));
  std::printf("formats: levels all float32 or all float16, rows float32, linear\n");
}

void check_decode_round_trip(nv::IPluginCreatorV3One* creator) {
  const Plugin first(make(creator, DecodeValues().fields()));
  const Plugin cloned(first.runtime->attachToContext(nullptr));
  const nv::PluginFieldCollection* kept = cloned.runtime->getFieldsToSerialize();
  const std::vector<nv::PluginField> fields(kept->fields, kept->fields + kept->nbFields);
  const Plugin second(make(creator, fields, nv::TensorRTPhase::kRUNTIME));
  EXPECT(second.runtime && fields.size() == 4);
  if (!second.runtime) return;
  const nv::PluginFieldCollection* again = second.runtime->getFieldsToSerialize();
  for (int32_t i = 0; i < again->nbFields; ++i) {
    EXPECT(!std::strcmp(again->fields[i].name, fields[i].name) && again->fields[i].length == fields[i].length);
    EXPECT(!std::memcmp(again->fields[i].data, fields[i].data, 4 * fields[i].length));
  }
  EXPECT(again->fields[3].length == 8 && static_cast<const float*>(again->fields[3].data)[7] == 119.0f);
  EXPECT(!std::strcmp(second.core->getPluginName(), "DecodeRows"));
  const nv::DynamicPluginTensorDesc levels[] = {
      described(nv::DataType::kFLOAT, {4, 32, 8, 8}), described(nv::DataType::kFLOAT, {4, 32, 4, 4})};
  const nv::DynamicPluginTensorDesc rows = described(nv::DataType::kFLOAT, {4, 160, 16});
  EXPECT(second.build->configurePlugin(levels, 2, &rows, 1) == 0);
  EXPECT(second.build->getWorkspaceSize(levels, 2, &rows, 1) == 0);
  std::printf("round trip of the fields, and clone\n");
}

void check_decode_errors(nv::IPluginCreatorV3One* creator, Logger& logger) {
  DecodeValues values;
  values.anchors.pop_back();
  EXPECT(!make(creator, values.fields()));
  std::printf("error: %s\n", logger.last.c_str());
  EXPECT(
      logger.last == "DecodeRows: attribute anchors must have two numbers for each of 1..8 anchors of 2 levels, got 7");
  values = DecodeValues();
  values.strides.clear();
  EXPECT(!make(creator, values.fields()));
  EXPECT(logger.last == "DecodeRows: attribute strides must have 1..8 entries, got 0");
  auto fields = DecodeValues().fields();
  fields.erase(fields.begin());
  EXPECT(!make(creator, fields));
  EXPECT(logger.last == "DecodeRows: attribute anchors is missing");
  EXPECT(!creator->createPlugin("decode", nullptr, nv::TensorRTPhase::kBUILD));
  const Plugin made(make(creator, DecodeValues().fields()));
  const nv::DynamicPluginTensorDesc levels[] = {
      described(nv::DataType::kFLOAT, {4, 32, 8, 8}), described(nv::DataType::kFLOAT, {4, 33, 4, 4})};
  const nv::DynamicPluginTensorDesc rows = described(nv::DataType::kFLOAT, {4, 160, 16});
  EXPECT(made.build->configurePlugin(levels, 2, &rows, 1) != 0);
  std::printf("error: %s\n", logger.last.c_str());
  EXPECT(logger.last == "DecodeRows: input 1 must have 32 channels (2 anchors of 16 columns), got 33");
  EXPECT(made.build->configurePlugin(levels, 1, &rows, 1) != 0);
  EXPECT(logger.last == "DecodeRows: 2 inputs and one output are expected, got 1 and 1");
}

// ---- No memory

// Lets every allocation of `call` fail in turn. Each time it must give `failed` and tell the logger why; what it gives
// when all succeed is returned. Without the guards the first failure ends the program.
template <typename Result, typename Call>
Result starve(const char* what, const std::string& reason, Result failed, Logger& logger, Call call) {
  for (int64_t allowed = 0; allowed < 100; ++allowed) {
    logger.last.clear();
    allocations_left = allowed;
    const Result result = call();
    const bool has_starved = allocations_left < 0;
    allocations_left = std::numeric_limits<int64_t>::max();
    if (!has_starved) {
      EXPECT(allowed > 0);
      std::printf("no memory: %s is refused at every allocation\n", what);
      return result;
    }
    EXPECT(result == failed);
    EXPECT(logger.last == reason);
  }
  EXPECT(!"it ends");
  return failed;
}

void check_no_memory(nv::IPluginCreatorV3One* nms, nv::IPluginCreatorV3One* decode, Logger& logger) {
  nv::IPluginV3* const none = nullptr;
  const auto nms_fields = Values().fields();
  const std::string nms_reason = "NmsKpt: std::bad_alloc", decode_reason = "DecodeRows: std::bad_alloc";
  const Plugin first(starve("createPlugin of NmsKpt", nms_reason, none, logger, [&] { return make(nms, nms_fields); }));
  const Plugin second(starve("clone of NmsKpt", nms_reason, none, logger, [&] { return first.plugin->clone(); }));
  EXPECT(second.build);
  const auto rows = described(nv::DataType::kFLOAT, {1, 100, 57});
  const std::vector<nv::DynamicPluginTensorDesc> outputs(6);
  EXPECT(starve("a wrong configurePlugin of NmsKpt", nms_reason, -1, logger,
             [&] { return second.build->configurePlugin(&rows, 1, outputs.data(), 6); }) == -1);
  EXPECT(starve("a wrong supportsFormatCombination of NmsKpt", nms_reason, false, logger,
             [&] { return second.build->supportsFormatCombination(0, &rows, 1, 3); }) == false);

  const DecodeValues values;
  const auto fields = values.fields();
  const Plugin third(
      starve("createPlugin of DecodeRows", decode_reason, none, logger, [&] { return make(decode, fields); }));
  const Plugin fourth(starve("attachToContext of DecodeRows", decode_reason, none, logger,
      [&] { return third.runtime->attachToContext(nullptr); }));
  EXPECT(fourth.runtime);
  const nv::PluginTensorDesc levels[] = {
      described(nv::DataType::kFLOAT, {4, 33, 8, 8}).desc, described(nv::DataType::kFLOAT, {4, 32, 4, 4}).desc};
  const nv::PluginTensorDesc out = described(nv::DataType::kFLOAT, {4, 160, 16}).desc;
  EXPECT(starve("a wrong onShapeChange of DecodeRows", decode_reason, -1, logger,
             [&] { return fourth.runtime->onShapeChange(levels, 2, &out, 1); }) == -1);
}

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  Finder finder;
  reinterpret_cast<void (*)(nv::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  using GetCreators = nv::IPluginCreatorInterface* const* (*)(int32_t&);
  auto* creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  EXPECT(count == 2);
  for (int32_t i = 0; i < count; ++i) {
    EXPECT(!std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
  }
  auto* creator = static_cast<nv::IPluginCreatorV3One*>(creators[0]);
  auto* decode = static_cast<nv::IPluginCreatorV3One*>(creators[1]);
  std::printf("headers: TensorRT %d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);

  check_creator(
      creator, "NmsKpt", "conf iou max_det pre_nms_topk num_classes num_keypoints kpt_dims has_obj cls_counts");
  check_shapes(creator, 5,
      "batchx1 int32, batchx100x4 float32, batchx100 float32, batchx100 int32, batchx100x5x3 float32, batchx1 int32");
  check_shapes(creator, 0, "batchx1 int32, batchx100x4 float32, batchx100 float32, batchx100 int32, batchx1 int32");
  check_formats(creator);
  check_round_trip(creator);
  check_errors(creator, finder.logger);
  check_creator(decode, "DecodeRows", "num_classes num_keypoints strides anchors");
  check_decode_shapes(decode);
  check_decode_formats(decode);
  check_decode_round_trip(decode);
  check_decode_errors(decode, finder.logger);
  check_no_memory(creator, decode, finder.logger);
  std::printf(failures ? "%d failures\n" : "the contract holds\n", failures);
  return failures != 0;
}
