// Predicts the mask of an image in C++, with an AOTInductor package of export.py --format aoti.
//
//     mask PACKAGE IMAGE MASK.png
//
// The steps are those of src/inference/predictor.py, with the same kernels, so the mask equals that
// of predict.py if both read the same pixels (see read_image). The input size, mean and std are in
// the package.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <ATen/ATen.h>

#include <cinttypes>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <opencv2/core/utils/logger.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "files.h"

using torch::inductor::AOTIModelPackageLoader;

std::unique_ptr<AOTIModelPackageLoader> open_package(const std::string& path) try {
  return std::make_unique<AOTIModelPackageLoader>(path);
} catch (const c10::Error& error) {  // whose text may list all files of another kind of package
  const std::string text = error.what_without_backtrace();
  throw std::runtime_error(path + ": not a package of export.py --format aoti that runs here (" +
                           text.substr(0, text.find('\n')).substr(0, 200) + ")");
}

// 1×3×H×W uint8.
at::Tensor to_tensor(const cv::Mat& image) {
  return at::from_blob(image.data, {1, image.rows, image.cols, 3}, at::kByte)
      .permute({0, 3, 1, 2})
      .clone(at::MemoryFormat::ChannelsLast);
}

// "[0.485, 0.456, 0.406]" to 1×3×1×1.
at::Tensor per_channel(std::string list) {
  for (char& c : list)
    if (c == '[' || c == ',' || c == ']') c = ' ';
  std::istringstream words(list);
  std::vector<float> values;
  for (float value; words >> value;) values.push_back(value);
  return at::tensor(values).view({1, -1, 1, 1});
}

at::Tensor resize(const at::Tensor& x, int64_t height, int64_t width) {
  return at::_upsample_bilinear2d_aa(x, {height, width}, /*align_corners=*/false);
}

// A value of the metadata that export.py writes.
std::string get_value(const std::unordered_map<std::string, std::string>& metadata,
                      const char* name) {
  const auto found = metadata.find(name);
  if (found == metadata.end())
    throw std::runtime_error(std::string("the package's metadata lack ") + name +
                             ": was it made by export.py --format aoti?");
  return found->second;
}

// The map of an image, H×W in [0, 1].
at::Tensor predict(AOTIModelPackageLoader& network, const at::Tensor& image) {
  const auto metadata = network.get_metadata();
  // "480x320" in quotes, instead of the square that the network was trained at.
  const std::string size = get_value(metadata, metadata.count("input_size") ? "input_size" : "img_size");
  int64_t width = 0, height = 0;
  if (std::sscanf(size.c_str(), "\"%" SCNd64 "x%" SCNd64, &width, &height) != 2)
    width = height = std::stoll(size);
  const std::string object_map = get_value(metadata, "object_map");
  if (object_map == "null") throw std::runtime_error("a network of several classes gives no mask");
  at::Tensor input = resize(image, height, width).to(at::kFloat).contiguous().div_(255);
  input = input.sub_(per_channel(get_value(metadata, "mean")));
  input = input.div_(per_channel(get_value(metadata, "std")));
  const int64_t channel = std::stoll(object_map);
  at::Tensor map = network.run({input})[0].slice(1, channel, channel + 1);
  return resize(map, image.size(2), image.size(3)).clamp_(0, 1)[0][0];
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: mask PACKAGE IMAGE MASK.png");
  check_output(argv[3], argv[1], argv[2]);
  c10::InferenceMode inference;
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  const auto network = open_package(argv[1]);
  const at::Tensor image = to_tensor(read_image(argv[2]));
  at::Tensor mask = predict(*network, image).mul(255).round().to(at::kByte).contiguous();
  const cv::Mat pixels(mask.size(0), mask.size(1), CV_8U, mask.data_ptr());
  write_mask(argv[3], pixels);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
