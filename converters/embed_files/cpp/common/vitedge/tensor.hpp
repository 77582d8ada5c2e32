// What encoders take and give, whatever runs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "vitedge/contract.hpp"

namespace vitedge {

// Float values in row-major order: last_hidden_state [1, tokens, hidden], pooler_output [1, hidden], logits [1, classes].
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

using Outputs = std::map<std::string, Tensor>;

struct Options {
  int threads = 0;  // 0 leaves it to the runtime
};

// Throws std::invalid_argument if an input has another size than the contract says.
inline void check_input(const std::vector<contract::InputValue>& input) {
  const std::size_t expected = std::size_t{3} * contract::kHeight * contract::kWidth;
  if (input.size() != expected) {
    throw std::invalid_argument("input: expected " + std::to_string(expected) + " values, found " +
                                std::to_string(input.size()));
  }
}

}  // namespace vitedge
