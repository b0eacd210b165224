// A picture's mask from C++: the network is an AOTInductor package of export.py --format aoti.
//
//     mask PACKAGE PICTURE MASK.png
//
// The steps are those of src/inference/predictor.py, by the same kernels, so the mask is predict.py's
// where both read the same pixels (see read_picture). The size that the network sees, mean and std
// are in the package.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <ATen/ATen.h>

#include <exception>
#include <iostream>
#include <memory>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

using torch::inductor::AOTIModelPackageLoader;

std::unique_ptr<AOTIModelPackageLoader> open_package(const std::string& path) try {
  return std::make_unique<AOTIModelPackageLoader>(path);
} catch (const c10::Error& error) {  // its own words come with a stack that no user needs
  throw std::runtime_error(path + ": not a package that runs here (" +
                           error.what_without_backtrace() + ")");
}

// Upright, 8 bits a channel, 1×3×H×W. OpenCV drops transparency, the low half of 16 bits and the
// orientation of a WebP, and fills up what is missing of a torn JPEG.
at::Tensor read_picture(const std::string& path) {
  cv::Mat picture = cv::imread(path, cv::IMREAD_COLOR);
  if (picture.empty()) throw std::runtime_error(path + ": no such file, or not a picture");
  cv::cvtColor(picture, picture, cv::COLOR_BGR2RGB);
  return at::from_blob(picture.data, {1, picture.rows, picture.cols, 3}, at::kByte)
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

// What export.py has written of the network, by name.
std::string told(const std::unordered_map<std::string, std::string>& about, const char* name) {
  const auto found = about.find(name);
  if (found == about.end())
    throw std::runtime_error(std::string("the package doesn't tell its ") + name +
                             ": is it one of export.py --format aoti?");
  return found->second;
}

// The map of a picture, H×W in [0, 1].
at::Tensor saliency(AOTIModelPackageLoader& network, const at::Tensor& picture) {
  const auto about = network.get_metadata();
  const int64_t side = std::stoll(told(about, "img_size"));
  const std::string map_of_object = told(about, "object_map");
  if (map_of_object == "null") throw std::runtime_error("the network tells classes; no mask of it");
  at::Tensor input = resize(picture, side, side).to(at::kFloat).contiguous().div_(255);
  input = input.sub_(per_channel(told(about, "mean"))).div_(per_channel(told(about, "std")));
  const int64_t channel = std::stoll(map_of_object);
  at::Tensor map = network.run({input})[0].slice(1, channel, channel + 1);
  return resize(map, picture.size(2), picture.size(3)).clamp_(0, 1)[0][0];
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: mask PACKAGE PICTURE MASK.png");
  c10::InferenceMode inference;
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  const auto network = open_package(argv[1]);
  const at::Tensor picture = read_picture(argv[2]);
  at::Tensor mask = saliency(*network, picture).mul(255).round().to(at::kByte).contiguous();
  const cv::Mat image(mask.size(0), mask.size(1), CV_8U, mask.data_ptr());
  if (!cv::imwrite(argv[3], image)) throw std::runtime_error(std::string(argv[3]) + ": not written");
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
