// What the TensorRT plugins share: names, fields, and how they tell an error.
#pragma once

#include <NvInfer.h>
#include <NvInferPlugin.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "common/guard.h"
#include "common/portable.h"

namespace deploykit {
namespace trt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr char plugin_version[] = "1";
constexpr char plugin_namespace[] = "deploykit";

inline nvinfer1::ILoggerFinder* logger_finder = nullptr;  // TensorRT's, once it has loaded the library

// Says an error by TensorRT's logger, or where there is none on stderr. Allocates nothing.
inline void log_error(const char* plugin, const char* what) noexcept {
  char line[1024];
  std::snprintf(line, sizeof line, "%s: %s", plugin, what);
  nvinfer1::ILogger* const logger =
      deploykit::guarded([] { return logger_finder ? logger_finder->findLogger() : nullptr; },
          [](const std::exception*, const char*) -> nvinfer1::ILogger* { return nullptr; });
  if (logger) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
}

// What `body()` returns; where it throws, the reason is logged and `failed` goes to TensorRT.
template <typename Result, typename Body>
Result guarded(const char* plugin, Result failed, Body&& body) noexcept {
  return deploykit::guarded([&]() -> Result { return body(); },
      [&](const std::exception*, const char* reason) {
        log_error(plugin, reason);
        return failed;
      });
}

// The same for what gives TensorRT 0 or -1.
template <typename Body>
int32_t guarded_code(const char* plugin, Body&& body) noexcept {
  return guarded<int32_t>(plugin, -1, [&] {
    body();
    return 0;
  });
}

inline void require_cuda(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

template <typename Stored>
inline std::vector<Stored> stored_in(const PluginField& field) {
  std::vector<Stored> values(field.length);
  if (!values.empty()) std::memcpy(values.data(), field.data, sizeof(Stored) * values.size());
  return values;
}

inline bool read_numbers(const PluginField& field, std::vector<float>* values) {
  if (field.type == PluginFieldType::kFLOAT32) {
    *values = stored_in<float>(field);
    return true;
  }
  if (field.type == PluginFieldType::kFLOAT64) {
    const auto wide = stored_in<double>(field);
    values->clear();
    for (const double value : wide) values->push_back(static_cast<float>(value));
    return true;
  }
  return false;
}

inline bool read_numbers(const PluginField& field, std::vector<int32_t>* values) {
  if (field.type == PluginFieldType::kINT32) {
    *values = stored_in<int32_t>(field);
    return true;
  }
  if (field.type == PluginFieldType::kINT64) {
    const auto wide = stored_in<int64_t>(field);
    values->clear();
    for (const int64_t value : wide) {
      values->push_back(static_cast<int32_t>(value));
      if (values->back() != value) return false;
    }
    return true;
  }
  return false;
}

template <typename Number>
inline bool read_numbers(const PluginField& field, Number* value) {
  std::vector<Number> values;
  if (field.length != 1 || !read_numbers(field, &values)) return false;
  *value = values[0];
  return true;
}

// The field `name` of what was given; `problem` becomes what is wrong with it. `value` is a number or a vector of them,
// and stays as it is where a field that is not required is missing.
template <typename Value>
inline void read_field(
    const PluginFieldCollection& given, const char* name, Value* value, std::string* problem, bool required = true) {
  for (int32_t i = 0; i < given.nbFields; ++i) {
    const PluginField& field = given.fields[i];
    if (!field.name || std::strcmp(field.name, name) != 0) continue;
    if (field.length < 0 || (field.length > 0 && !field.data) || !read_numbers(field, value)) {
      *problem = std::string("attribute ") + name + " has another type than README.md says";
    }
    return;
  }
  if (required) *problem = std::string("attribute ") + name + " is missing";
}

// What every plugin here is as an object of TensorRT. `Self` derives from it and has a `name`, a type `Fields` that
// lists its `Attributes` (with a null pointer: names and types only), and `read(given, &attributes)`, which says what
// is wrong.
template <typename Self, typename Attributes, typename Fields>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(const Attributes& attributes) : attributes_(attributes), fields_(&attributes_) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(Self::name, nullptr, [&] { return new Self(attributes_); });
  }

  const char* getPluginName() const noexcept override { return Self::name; }
  const char* getPluginVersion() const noexcept override { return plugin_version; }
  const char* getPluginNamespace() const noexcept override { return plugin_namespace; }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_.collection; }

 protected:
  Attributes attributes_;

 private:
  Fields fields_;
};

template <typename Self, typename Attributes, typename Fields>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return Self::name; }
  const char* getPluginVersion() const noexcept override { return plugin_version; }
  const char* getPluginNamespace() const noexcept override { return plugin_namespace; }

  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_.collection; }

  nvinfer1::IPluginV3* createPlugin(
      const char*, const PluginFieldCollection* given, nvinfer1::TensorRTPhase) noexcept override {
    return guarded<nvinfer1::IPluginV3*>(Self::name, nullptr, [&] {
      Attributes attributes;
      require_valid(given ? Self::read(*given, &attributes) : "no attributes were given");
      require_valid(attributes.validation_error());
      return new Self(attributes);
    });
  }

 private:
  Fields fields_{nullptr};
};

}  // namespace trt

// The creators of the plugins, one a folder.
namespace nms {
nvinfer1::IPluginCreatorInterface* creator();
}
namespace decode {
nvinfer1::IPluginCreatorInterface* creator();
}

}  // namespace deploykit
