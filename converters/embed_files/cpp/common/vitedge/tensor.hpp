// What an encoder gives.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vitedge {

// Float values in row-major order: last_hidden_state [1, tokens, hidden], pooler_output [1, hidden], logits [1, classes].
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

using Outputs = std::map<std::string, Tensor>;

}  // namespace vitedge
