// The encoder over ONNX Runtime's C API, which is stable across its releases. Header-only, C++17.
//
//     vitedge::Encoder encoder("model", {/*threads=*/1});
//     vitedge::Outputs outputs = encoder.encode({pixels, height, width});
//
// One encoder may be called from several threads at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"
#include "vitedge/contract.hpp"
#include "vitedge/files.hpp"
#include "vitedge/preprocess.hpp"
#include "vitedge/tensor.hpp"

namespace vitedge {

class Encoder {
 public:
  // `folder` holds the artifact, as vitedge wrote it.
  // Throws std::runtime_error if the model is missing, changed, or too new for this ONNX Runtime.
  explicit Encoder(const std::string& folder, Options options = {}) : api_(api()) {
    const std::string path = folder + "/" + std::string(contract::kModelFile);
    const std::vector<std::uint8_t> model = read_file(path);
    check_sha256(path, model, contract::kModelSha256);
    open_environment(path);
    Handle<OrtSessionOptions> settings(nullptr, api_->ReleaseSessionOptions);
    check(api_->CreateSessionOptions(out(settings)), path);
    if (options.threads > 0) check(api_->SetIntraOpNumThreads(settings.get(), options.threads), path);
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out(memory_)), path);
    if (kX86 && !contract::kExactOnX86) {
      static const bool saturates = saturates_here();
      // Kernels for uint8 times uint8: exact, and slower, for nothing on CPUs where those for int8 are exact too.
      if (saturates) check(api_->AddSessionConfigEntry(settings.get(), "session.x64quantprecision", "1"), path);
    }
    check(api_->CreateSessionFromArray(env_.get(), model.data(), model.size(), settings.get(), out(session_)), path);
  }

  // Preprocesses one image of any size, and runs the encoder. Throws as `preprocess` and `run` do.
  Outputs encode(const Image& image) const { return run(preprocess(image)); }

  // Runs the encoder on an input that is preprocessed, in the order of contract::kInputLayout.
  // Throws std::invalid_argument if it has another size, std::runtime_error if the runtime fails.
  Outputs run(const std::vector<contract::InputValue>& input) const {
    using namespace contract;
    check_input(input);
    const bool planar = kInputLayout == "NCHW";
    const std::int64_t shape[4] = {1, planar ? 3 : kHeight, planar ? kHeight : kWidth, planar ? kWidth : 3};
    Handle<OrtValue> value(nullptr, api_->ReleaseValue);
    check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<InputValue*>(input.data()),
                                               input.size() * sizeof(InputValue), shape, 4,
                                               kPixelsIn ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                                         : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                               out(value)),
          "input");
    constexpr std::size_t count = std::size(kOutputNames);
    const char* input_names[1] = {kInputName.data()};
    const char* output_names[count];
    OrtValue* found[count] = {};
    for (std::size_t index = 0; index < count; ++index) output_names[index] = kOutputNames[index].data();
    const OrtValue* inputs[1] = {value.get()};
    check(api_->Run(session_.get(), nullptr, input_names, inputs, 1, output_names, count, found), "inference");
    std::vector<Handle<OrtValue>> owned;
    for (OrtValue* tensor : found) owned.emplace_back(tensor, api_->ReleaseValue);
    Outputs outputs;
    for (std::size_t index = 0; index < count; ++index) outputs[output_names[index]] = copied(owned[index].get());
    return outputs;
  }

 private:
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
  static constexpr bool kX86 = true;
#else
  static constexpr bool kX86 = false;
#endif

  template <typename T>
  using Handle = std::unique_ptr<T, void (*)(T*)>;

  // Hands a C function the place for what it makes, and owns that afterwards.
  template <typename T>
  class Out {
   public:
    explicit Out(Handle<T>& handle) : handle_(handle) {}
    ~Out() { handle_.reset(made_); }
    operator T**() { return &made_; }

   private:
    Handle<T>& handle_;
    T* made_ = nullptr;
  };

  template <typename T>
  static Out<T> out(Handle<T>& handle) {
    return Out<T>(handle);
  }

  static const OrtApi* api() {
    const OrtApi* found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (found == nullptr) {
      throw std::runtime_error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                               " is older than the header that this was compiled with; ship the library of the header");
    }
    return found;
  }

  // From 1.29 on, and on Windows always, ONNX Runtime tells Microsoft of the app, the machine and the model. On Windows it is
  // told not to; elsewhere a variable says so, before the first environment of the process is made.
  void open_environment(const std::string& path) {
#ifdef _WIN32
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "vitedge", out(env_)), path);
    check(api_->DisableTelemetryEvents(env_.get()), path);
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "vitedge", out(env_)), path);
#endif
  }

  void check(OrtStatus* status, const std::string& what) const {
    if (status == nullptr) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw std::runtime_error(what + ": " + message + " (ONNX Runtime " + OrtGetApiBase()->GetVersionString() + ")");
  }

  // Whether ONNX Runtime's kernels for uint8 times int8 saturate on this CPU, as those of x86 without VNNI do: they are
  // asked for 255 * 127 + 255 * 127.
  bool saturates_here() const {
    constexpr std::int64_t rows = 32, inner = 64;
    const std::string what = "asking whether products saturate";
    std::vector<std::uint8_t> a(rows * inner);
    for (std::size_t row = 0; row < rows; ++row) a[row * inner] = a[row * inner + 1] = 255;
    std::vector<std::int8_t> b(inner * rows, 127);
    const std::int64_t a_shape[2] = {rows, inner}, b_shape[2] = {inner, rows};
    Handle<OrtSessionOptions> settings(nullptr, api_->ReleaseSessionOptions);
    Handle<OrtSession> session(nullptr, api_->ReleaseSession);
    Handle<OrtValue> left(nullptr, api_->ReleaseValue), right(nullptr, api_->ReleaseValue);
    check(api_->CreateSessionOptions(out(settings)), what);
    check(api_->SetIntraOpNumThreads(settings.get(), 1), what);
    check(api_->CreateSessionFromArray(env_.get(), kProduct, sizeof(kProduct), settings.get(), out(session)), what);
    check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), a.data(), a.size(), a_shape, 2,
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, out(left)),
          what);
    check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), b.data(), b.size(), b_shape, 2,
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, out(right)),
          what);
    const char* input_names[2] = {"a", "b"};
    const char* output_names[1] = {"y"};
    const OrtValue* inputs[2] = {left.get(), right.get()};
    OrtValue* found = nullptr;
    check(api_->Run(session.get(), nullptr, input_names, inputs, 2, output_names, 1, &found), what);
    const Handle<OrtValue> product(found, api_->ReleaseValue);
    void* data = nullptr;
    check(api_->GetTensorMutableData(product.get(), &data), what);
    const std::int32_t* values = static_cast<const std::int32_t*>(data);
    return std::any_of(values, values + rows * rows, [](std::int32_t value) { return value != 2 * 255 * 127; });
  }

  // A model: MatMulInteger of uint8 a [m, k] and int8 b [k, n], operator set 10.
  static constexpr unsigned char kProduct[] = {
    0x08, 0x05, 0x12, 0x00, 0x3a, 0x62, 0x0a, 0x18, 0x0a, 0x01, 0x61, 0x0a, 0x01, 0x62, 0x12, 0x01, 0x79, 0x22,
    0x0d, 0x4d, 0x61, 0x74, 0x4d, 0x75, 0x6c, 0x49, 0x6e, 0x74, 0x65, 0x67, 0x65, 0x72, 0x12, 0x01, 0x67, 0x5a,
    0x15, 0x0a, 0x01, 0x61, 0x12, 0x10, 0x0a, 0x0e, 0x08, 0x02, 0x12, 0x0a, 0x0a, 0x03, 0x12, 0x01, 0x6d, 0x0a,
    0x03, 0x12, 0x01, 0x6b, 0x5a, 0x15, 0x0a, 0x01, 0x62, 0x12, 0x10, 0x0a, 0x0e, 0x08, 0x03, 0x12, 0x0a, 0x0a,
    0x03, 0x12, 0x01, 0x6b, 0x0a, 0x03, 0x12, 0x01, 0x6e, 0x62, 0x15, 0x0a, 0x01, 0x79, 0x12, 0x10, 0x0a, 0x0e,
    0x08, 0x06, 0x12, 0x0a, 0x0a, 0x03, 0x12, 0x01, 0x6d, 0x0a, 0x03, 0x12, 0x01, 0x6e, 0x42, 0x04, 0x0a, 0x00,
    0x10, 0x0a,
  };

  Tensor copied(OrtValue* value) const {
    Handle<OrtTensorTypeAndShapeInfo> info(nullptr, api_->ReleaseTensorTypeAndShapeInfo);
    check(api_->GetTensorTypeAndShape(value, out(info)), "output");
    std::size_t rank = 0, size = 0;
    check(api_->GetDimensionsCount(info.get(), &rank), "output");
    check(api_->GetTensorShapeElementCount(info.get(), &size), "output");
    Tensor tensor;
    tensor.shape.resize(rank);
    check(api_->GetDimensions(info.get(), tensor.shape.data(), rank), "output");
    void* data = nullptr;
    check(api_->GetTensorMutableData(value, &data), "output");
    const float* values = static_cast<const float*>(data);
    tensor.values.assign(values, values + size);
    return tensor;
  }

  const OrtApi* api_;
  Handle<OrtEnv> env_{nullptr, api_->ReleaseEnv};
  Handle<OrtSession> session_{nullptr, api_->ReleaseSession};
  Handle<OrtMemoryInfo> memory_{nullptr, api_->ReleaseMemoryInfo};
};

}  // namespace vitedge
