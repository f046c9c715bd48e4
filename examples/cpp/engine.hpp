// A TensorRT engine with one input and outputs of fixed size, run for one image at a time. TensorRT 10 or later.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
  }
};

class Engine {
 public:
  // plugins: libdeploykit_tensorrt of `deploykit plugins build`; empty: the engine has none of its nodes.
  Engine(const std::string& path, const std::string& plugins) {
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) throw std::runtime_error("TensorRT does not start");
    if (!plugins.empty() && !runtime_->getPluginRegistry().loadLibrary(plugins.c_str()))
      throw std::runtime_error("cannot load the plugins in " + plugins);
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> plan{std::istreambuf_iterator<char>(file), {}};
    if (plan.empty()) throw std::runtime_error("cannot read " + path);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) throw std::runtime_error(path + " is no engine for this TensorRT and this GPU");
    context_.reset(engine_->createExecutionContext());
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  ~Engine() {
    for (auto& [name, buffer] : buffers_) cudaFree(buffer.device);
    cudaStreamDestroy(stream_);
  }

  // Run the network on an input (1, 3, height, width).
  void run(const std::string& input, const std::vector<float>& values, int height, int width) {
    if (!context_->setInputShape(input.c_str(), nvinfer1::Dims4{1, 3, height, width}))
      throw std::runtime_error("no profile of the engine takes this input");
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      Buffer& buffer = buffers_[name];
      buffer.resize(bytes(name));
      if (!context_->setTensorAddress(name, buffer.device))
        throw std::runtime_error(std::string("cannot bind ") + name);
    }
    Buffer& given = buffers_.at(input);
    if (given.host.size() != values.size() * sizeof(float)) throw std::runtime_error("the input has another size");
    check(cudaMemcpyAsync(given.device, values.data(), given.host.size(), cudaMemcpyHostToDevice, stream_), "copy");
    if (!context_->enqueueV3(stream_)) throw std::runtime_error("the engine did not run");
    for (auto& [name, buffer] : buffers_)
      if (name != input)
        check(cudaMemcpyAsync(buffer.host.data(), buffer.device, buffer.host.size(), cudaMemcpyDeviceToHost, stream_),
            "copy");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  bool has(const std::string& output) const { return buffers_.count(output) != 0; }

  // The values of an output of the last run, in C order.
  template <typename T>
  const T* output(const std::string& name) const {
    return reinterpret_cast<const T*>(buffers_.at(name).host.data());
  }

  nvinfer1::Dims shape(const std::string& name) const { return context_->getTensorShape(name.c_str()); }

 private:
  struct Buffer {
    void* device = nullptr;
    std::vector<char> host;

    void resize(size_t size) {
      if (size == host.size() && device != nullptr) return;
      check(cudaFree(device), "cudaFree");
      check(cudaMalloc(&device, size), "cudaMalloc");
      host.resize(size);
    }
  };

  size_t bytes(const char* name) const {
    const nvinfer1::Dims dims = context_->getTensorShape(name);
    size_t count = 1;
    for (int i = 0; i < dims.nbDims; ++i) count *= size_t(dims.d[i]);
    switch (engine_->getTensorDataType(name)) {
      case nvinfer1::DataType::kFLOAT:
      case nvinfer1::DataType::kINT32: return 4 * count;
      case nvinfer1::DataType::kINT64: return 8 * count;
      case nvinfer1::DataType::kHALF:
      case nvinfer1::DataType::kBF16: return 2 * count;
      default: return count;
    }
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::map<std::string, Buffer> buffers_;
  cudaStream_t stream_ = nullptr;
};
