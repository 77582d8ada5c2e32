// The encoder over OpenVINO's C++ API. Header-only, C++17.
//
//     vitedge::Encoder encoder("model", {/*threads=*/1});
//     vitedge::Outputs outputs = encoder.encode({pixels, height, width});
//
// Calls from several threads take turns on one inference request.
#pragma once

#include <cstddef>
#include <mutex>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "vitedge/contract.hpp"
#include "vitedge/files.hpp"
#include "vitedge/preprocess.hpp"
#include "vitedge/tensor.hpp"

namespace vitedge {

class Encoder {
 public:
  // `folder` holds the artifact, as vitedge wrote it.
  // Throws std::runtime_error if the model is missing, changed, or too new for this OpenVINO.
  explicit Encoder(const std::string& folder, Options options = {}) {
    const std::string path = folder + "/" + std::string(contract::kModelFile);
    check_sha256(path, read_file(path), contract::kModelSha256);
    const std::string weights = path.substr(0, path.rfind('.')) + ".bin";
    check_sha256(weights, read_file(weights), contract::kWeightsSha256);
    // What the artifact keeps float stays float32: by itself the plugin takes bfloat16 on CPUs with AMX and float16 on
    // ARM, and the same file would give other features there.
    ov::AnyMap settings = {ov::hint::inference_precision(ov::element::f32),
                           ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
    if (options.threads > 0) settings.insert(ov::inference_num_threads(options.threads));
    request_ = core_.compile_model(path, "CPU", settings).create_infer_request();
  }

  // Preprocesses one image of any size, and runs the encoder. Throws as `preprocess` and `run` do.
  Outputs encode(const Image& image) { return run(preprocess(image)); }

  // Runs the encoder on an input that is preprocessed, in the order of contract::kInputLayout.
  // Throws std::invalid_argument if it has another size, ov::Exception (a std::runtime_error) if the runtime fails.
  Outputs run(const std::vector<contract::InputValue>& input) {
    using namespace contract;
    check_input(input);
    const bool planar = kInputLayout == "NCHW";
    const ov::Shape shape = planar ? ov::Shape{1, 3, kHeight, kWidth} : ov::Shape{1, kHeight, kWidth, 3};
    const std::lock_guard<std::mutex> turn(mutex_);
    const ov::Tensor tensor(kPixelsIn ? ov::element::u8 : ov::element::f32, shape,
                            const_cast<InputValue*>(input.data()));
    request_.set_tensor(std::string(kInputName), tensor);
    request_.infer();
    Outputs outputs;
    for (const std::string_view name : kOutputNames) {
      const ov::Tensor found = request_.get_tensor(std::string(name));
      const float* values = found.data<const float>();
      outputs[std::string(name)] = {{found.get_shape().begin(), found.get_shape().end()},
                                    {values, values + found.get_size()}};
    }
    return outputs;
  }

 private:
  ov::Core core_;
  ov::InferRequest request_;
  std::mutex mutex_;
};

}  // namespace vitedge
