// Does the artifact do here what it did on the host? Preprocessing and inference are judged apart.
//
//     selftest [model] [golden] [--write FILE]        exit code 0: passed, 1: something failed, 2: cannot be run
//
// --write keeps last_hidden_state of all golden images as raw floats.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "vitedge/encoder.hpp"

namespace {

using vitedge::read_file;
namespace contract = vitedge::contract;

struct Golden {
  int height, width;
  std::vector<std::uint8_t> pixels;
};

// golden/index.txt has a line for each image: height, width, file of pixels, PNG.
std::vector<Golden> golden_images(const std::string& folder) {
  const std::vector<std::uint8_t> text = read_file(folder + "/index.txt");
  std::istringstream lines(std::string(text.begin(), text.end()));
  std::vector<Golden> images;
  std::string pixels, png;
  for (int height = 0, width = 0; lines >> height >> width >> pixels >> png;) {
    images.push_back({height, width, read_file(folder + "/" + pixels)});
    if (images.back().pixels.size() != std::size_t{3} * height * width) {
      throw std::runtime_error(folder + "/" + pixels + ": not of " + std::to_string(height) + "x" +
                               std::to_string(width) + " pixels; copy the folder again");
    }
  }
  if (images.empty()) throw std::runtime_error(folder + "/index.txt: names no image; copy the folder again");
  return images;
}

std::vector<float> floats(const std::string& path, std::size_t expected) {
  const std::vector<std::uint8_t> bytes = read_file(path);
  if (bytes.size() != expected * sizeof(float)) {
    throw std::runtime_error(path + ": expected " + std::to_string(expected * sizeof(float)) + " bytes, found " +
                             std::to_string(bytes.size()) + "; copy the folder again");
  }
  std::vector<float> values(expected);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

bool report(const char* step, bool passed, const std::string& found) {
  std::printf("%-14s %s  %s\n", step, passed ? "pass" : "FAIL", found.c_str());
  return passed;
}

// Resized pixels are equal, and normalized ones to 1e-6.
bool test_preprocessing(const std::vector<Golden>& images, const std::string& folder) {
  using namespace contract;
  const std::size_t area = static_cast<std::size_t>(kHeight) * kWidth;
  const std::vector<std::uint8_t> resized = read_file(folder + "/resized.bin");
  const std::vector<float> planes = floats(folder + "/pixel_values.bin", images.size() * area * 3);
  std::size_t different = 0;
  double worst = 0;
  for (std::size_t image = 0; image < images.size(); ++image) {
    const Golden& golden = images[image];
    const vitedge::Image view = {golden.pixels.data(), golden.height, golden.width};
    const std::vector<std::uint8_t> pixels = vitedge::resize(view, kHeight, kWidth, kResample);
    const std::vector<InputValue> input = vitedge::preprocess(view);
    for (std::size_t pixel = 0; pixel < area; ++pixel) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const std::size_t packed = pixel * 3 + channel, planar = channel * area + pixel;
        different += pixels[packed] != resized.at(image * area * 3 + packed);
        if constexpr (!kPixelsIn) {
          const float found = input[kInputLayout == "NCHW" ? planar : packed];
          const double error = std::abs(double{found} - planes[image * area * 3 + planar]);
          if (!(error <= worst)) worst = error;  // NaN, too
        }
      }
    }
  }
  char found[128];
  std::snprintf(found, sizeof found, "%zu resized values differ; largest error after normalization %.1e", different,
                worst);
  return report("preprocessing", different == 0 && worst <= 1e-6, found);
}

// All golden images, one after the other, by output.
using Found = std::map<std::string, std::vector<float>>;

Found encode_all(vitedge::Encoder& encoder, const std::vector<Golden>& images) {
  Found all;
  for (const Golden& golden : images) {
    for (const auto& [name, tensor] : encoder.encode({golden.pixels.data(), golden.height, golden.width})) {
      all[name].insert(all[name].end(), tensor.values.begin(), tensor.values.end());
    }
  }
  return all;
}

// The cosine of two vectors; -1 if there is none.
double cosine(const float* one, const float* other, std::size_t size) {
  double product = 0, first = 0, second = 0;
  for (std::size_t index = 0; index < size; ++index) {
    product += double{one[index]} * other[index];
    first += double{one[index]} * one[index];
    second += double{other[index]} * other[index];
  }
  const double found = product / std::max(std::sqrt(first * second), 1e-30);
  return std::isfinite(found) ? found : -1;
}

// Whether an output is as near to FP32 as it may be: the first row of every image, and all values together. Adds to `text`.
bool near(std::size_t output, const std::vector<float>& found, const std::vector<float>& expected, std::string& text) {
  using namespace contract;
  double signal = 0, noise = 0, worst = 1;
  for (std::size_t index = 0; index < expected.size(); ++index) {
    signal += double{expected[index]} * expected[index];
    noise += (double{found[index]} - expected[index]) * (double{found[index]} - expected[index]);
  }
  for (std::size_t start = 0; start < expected.size(); start += kOutputSizes[output]) {
    worst = std::min(worst, cosine(expected.data() + start, found.data() + start, kOutputWidths[output]));
  }
  const double sqnr_db = 10 * std::log10(std::max(signal, 1e-30) / std::max(noise, 1e-30));
  char line[256];
  std::snprintf(line, sizeof line, "%s%s: cosine %.5f (at least %.5f), SQNR %.1f dB (at least %.1f)",
                text.empty() ? "" : "; ", kOutputNames[output].data(), worst, kMinCosines[output], sqnr_db,
                kMinSqnrsDb[output]);
  text += line;
  return worst >= kMinCosines[output] && sqnr_db >= kMinSqnrsDb[output];
}

bool test_inference(const Found& found, const std::string& folder, std::size_t images) {
  using namespace contract;
  bool passed = true;
  std::string text;
  for (std::size_t output = 0; output < std::size(kOutputNames); ++output) {
    const std::string name(kOutputNames[output]);
    const std::vector<float> expected = floats(folder + "/fp32/" + name + ".bin", images * kOutputSizes[output]);
    if (found.at(name).size() != expected.size()) {
      throw std::runtime_error(name + ": expected " + std::to_string(expected.size()) + " values, found " +
                               std::to_string(found.at(name).size()));
    }
    passed &= near(output, found.at(name), expected, text);
  }
  return report("inference", passed, text);
}

int run(const std::string& model, const std::string& folder, const std::string& write) {
  const std::vector<Golden> images = golden_images(folder);
  const bool preprocessing = test_preprocessing(images, folder);
  vitedge::Encoder encoder(model);
  const auto start = std::chrono::steady_clock::now();
  const Found found = encode_all(encoder, images);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  const bool inference = test_inference(found, folder, images.size());
  std::printf("%.1f ms an image, with preprocessing\n", took.count() / static_cast<double>(images.size()));
  if (!write.empty()) {
    const std::vector<float>& values = found.at("last_hidden_state");
    std::ofstream file(write, std::ios::binary);
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    if (!file.flush()) throw std::runtime_error(write + ": cannot be written");
  }
  return preprocessing && inference ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  std::vector<std::string> paths;
  std::string write;
  for (int index = 1; index < count; ++index) {
    if (std::string(words[index]) == "--write" && index + 1 < count) write = words[++index];
    else paths.emplace_back(words[index]);
  }
  try {
    return run(paths.empty() ? "model" : paths[0], paths.size() < 2 ? "golden" : paths[1], write);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
