// resize IN HEIGHT WIDTH OUT NEW_HEIGHT NEW_WIDTH FILTER: for the tests, on raw pixels.
#include <fstream>
#include <string>

#include "vitedge/files.hpp"
#include "vitedge/preprocess.hpp"

int main(int, char** words) {
  const std::vector<std::uint8_t> pixels = vitedge::read_file(words[1]);
  const vitedge::Image image = {pixels.data(), std::stoi(words[2]), std::stoi(words[3])};
  const std::vector<std::uint8_t> resized = vitedge::resize(image, std::stoi(words[5]), std::stoi(words[6]), words[7]);
  std::ofstream(words[4], std::ios::binary)
      .write(reinterpret_cast<const char*>(resized.data()), static_cast<std::streamsize>(resized.size()));
}
