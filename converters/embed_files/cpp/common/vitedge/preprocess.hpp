// From decoded pixels to the encoder's input, as the encoder was trained: Pillow's Image.resize to the bit, then
// normalization. Resizing with another library's filter is the commonest cause of bad features on a device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vitedge/contract.hpp"

namespace vitedge {

// 8-bit RGB, row by row, without padding; it does not own the pixels.
struct Image {
  const std::uint8_t* rgb;
  int height;
  int width;
};

namespace detail {

inline constexpr int kPrecisionBits = 32 - 8 - 2;  // of Pillow's fixed point coefficients
inline constexpr double kPi = 3.14159265358979323846;

inline double sinc(double x) { return x == 0 ? 1.0 : std::sin(kPi * x) / (kPi * x); }

// The filters of Pillow's Resample.c, in source pixels at scale 1.
inline double filter(std::string_view name, double x) {
  const double magnitude = std::abs(x);
  if (name == "box") return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  if (name == "bilinear") return std::max(0.0, 1.0 - magnitude);
  if (name == "hamming") return magnitude < 1 ? sinc(x) * (0.54f + 0.46f * std::cos(kPi * x)) : 0.0;
  if (name == "bicubic") {
    const double a = -0.5;
    if (magnitude < 1) return ((a + 2) * magnitude - (a + 3)) * magnitude * magnitude + 1;
    return magnitude < 2 ? (((magnitude - 5) * magnitude + 8) * magnitude - 4) * a : 0.0;
  }
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0.0;  // lanczos
}

inline double support(std::string_view name) {
  if (name == "box") return 0.5;
  if (name == "bilinear" || name == "hamming") return 1.0;
  if (name == "bicubic") return 2.0;
  if (name == "lanczos") return 3.0;
  throw std::invalid_argument("unknown resize filter: " + std::string(name));
}

// The input pixels that one output pixel reads, and their fixed point weights.
struct Taps {
  int begin;
  std::vector<std::int32_t> weights;
};

inline std::vector<Taps> taps(int size, int new_size, std::string_view resample) {
  const double scale = static_cast<double>(size) / new_size;
  const double filter_scale = std::max(scale, 1.0);  // a filter widens when it shrinks
  const double reach = support(resample) * filter_scale;
  std::vector<Taps> result(static_cast<std::size_t>(new_size));
  for (int output = 0; output < new_size; ++output) {
    const double center = (output + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - reach + 0.5), 0);
    const int end = std::min(static_cast<int>(center + reach + 0.5), size);
    std::vector<double> weights;
    double total = 0;
    for (int x = begin; x < end; ++x) {
      weights.push_back(filter(resample, (x - center + 0.5) * (1.0 / filter_scale)));
      total += weights.back();
    }
    Taps& found = result[static_cast<std::size_t>(output)];
    found.begin = begin;
    for (const double weight : weights) {
      const double fixed = (total == 0 ? weight : weight / total) * (1 << kPrecisionBits);
      found.weights.push_back(static_cast<std::int32_t>(fixed + std::copysign(0.5, fixed)));
    }
  }
  return result;
}

inline std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

using Pixels = std::vector<std::uint8_t>;

inline Pixels resize_columns(const std::uint8_t* rgb, int height, int width, int new_width, std::string_view resample) {
  Pixels result(static_cast<std::size_t>(height) * new_width * 3);
  const std::vector<Taps> columns = taps(width, new_width, resample);
  std::uint8_t* out = result.data();
  for (int row = 0; row < height; ++row) {
    const std::uint8_t* line = rgb + static_cast<std::size_t>(row) * width * 3;
    for (const Taps& column : columns) {
      std::int32_t sums[3] = {1 << (kPrecisionBits - 1), 1 << (kPrecisionBits - 1), 1 << (kPrecisionBits - 1)};
      const std::uint8_t* pixel = line + column.begin * 3;
      for (const std::int32_t weight : column.weights) {
        for (int channel = 0; channel < 3; ++channel) sums[channel] += weight * *pixel++;
      }
      for (const std::int32_t sum : sums) *out++ = rounded(sum);
    }
  }
  return result;
}

inline Pixels resize_rows(const std::uint8_t* rgb, int height, int width, int new_height, std::string_view resample) {
  const std::size_t values = static_cast<std::size_t>(width) * 3;
  Pixels result(values * new_height);
  std::vector<std::int32_t> sums(values);
  std::uint8_t* out = result.data();
  for (const Taps& row : taps(height, new_height, resample)) {
    std::fill(sums.begin(), sums.end(), 1 << (kPrecisionBits - 1));
    const std::uint8_t* line = rgb + row.begin * values;
    for (const std::int32_t weight : row.weights) {
      for (std::size_t index = 0; index < values; ++index) sums[index] += weight * line[index];
      line += values;
    }
    for (const std::int32_t sum : sums) *out++ = rounded(sum);
  }
  return result;
}

// Source index of each output index, as Pillow's affine transform: pixel centers, stepped one by one.
inline std::vector<int> nearest(int size, int new_size) {
  const double step = static_cast<double>(size) / new_size;
  double center = step * 0.5;
  std::vector<int> result;
  for (int index = 0; index < new_size; ++index, center += step) {
    result.push_back(std::min(static_cast<int>(center), size - 1));
  }
  return result;
}

inline Pixels resize_nearest(const Image& image, int height, int width) {
  Pixels result;
  result.reserve(static_cast<std::size_t>(height) * width * 3);
  const std::vector<int> columns = nearest(image.width, width);
  for (const int row : nearest(image.height, height)) {
    for (const int column : columns) {
      const std::uint8_t* pixel = image.rgb + (static_cast<std::size_t>(row) * image.width + column) * 3;
      result.insert(result.end(), pixel, pixel + 3);
    }
  }
  return result;
}

}  // namespace detail

// Resizes as Pillow's Image.resize((width, height), resample) does, to the bit: RGB, row by row.
// Throws std::invalid_argument for an empty image or an unknown filter.
inline std::vector<std::uint8_t> resize(const Image& image, int height, int width, std::string_view resample) {
  if (image.rgb == nullptr || image.height <= 0 || image.width <= 0) {
    throw std::invalid_argument("expected an RGB image, found one of " + std::to_string(image.height) + "x" +
                                std::to_string(image.width) + " pixels");
  }
  if (resample == "nearest") return detail::resize_nearest(image, height, width);
  detail::Pixels pixels(image.rgb, image.rgb + static_cast<std::size_t>(image.height) * image.width * 3);
  const auto rows = [&](int columns) {
    if (image.height != height) pixels = detail::resize_rows(pixels.data(), image.height, columns, height, resample);
  };
  const auto columns = [&](int lines) {
    if (image.width != width) pixels = detail::resize_columns(pixels.data(), lines, image.width, width, resample);
  };
  // Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; the order shows in rounding.
  if (image.height > height && image.height - height > 2 * (image.width - width)) {
    rows(image.width);
    columns(height);
  } else {
    columns(image.height);
    rows(width);
  }
  return pixels;
}

namespace detail {

// float values as they are normalized, in the order of contract::kInputLayout; uint8 ones as they are.
template <typename Value>
std::vector<Value> normalized(std::vector<std::uint8_t>&& pixels) {
  using namespace contract;
  if constexpr (std::is_same_v<Value, std::uint8_t>) {
    return std::move(pixels);
  } else {
    const std::size_t area = static_cast<std::size_t>(kHeight) * kWidth;
    std::vector<Value> result(area * 3);
    for (std::size_t channel = 0; channel < 3; ++channel) {
      Value table[256];
      for (int value = 0; value < 256; ++value) {
        // Rounded to float at every step, as in Python: by way of double, or compilers for ARM fuse the first two.
        const float scaled = static_cast<float>(double{kRescaleFactor} * value);
        table[value] = static_cast<float>(double{scaled} - kMean[channel]) / kStd[channel];
      }
      const bool planar = kInputLayout == "NCHW";
      const std::size_t first = planar ? channel * area : channel, step = planar ? 1 : 3;
      for (std::size_t pixel = 0; pixel < area; ++pixel) {
        result[first + pixel * step] = table[pixels[pixel * 3 + channel]];
      }
    }
    return result;
  }
}

}  // namespace detail

// One image to the encoder's input, in the order of contract::kInputLayout.
// Throws std::invalid_argument as `resize` does.
inline std::vector<contract::InputValue> preprocess(const Image& image) {
  return detail::normalized<contract::InputValue>(
      resize(image, contract::kHeight, contract::kWidth, contract::kResample));
}

}  // namespace vitedge
