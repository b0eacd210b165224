// The mask of an image from C++: the network is an AOTInductor package of export.py --format aoti.
//
//     mask PACKAGE IMAGE MASK.png
//
// The steps are those of src/inference/predictor.py, by the same kernels, so the mask is predict.py's
// where both read the same pixels (see read_image). The size that the network sees, mean and std
// are in the package.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <ATen/ATen.h>

#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <exception>
#include <filesystem>
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
} catch (const c10::Error& error) {  // its full message holds a stack trace
  throw std::runtime_error(path + ": not a package that runs here (" +
                           error.what_without_backtrace() + ")");
}

// Upright, 8 bits a channel, 1×3×H×W. OpenCV drops transparency, the low half of 16 bits and the
// orientation of a WebP, and fills in the missing end of a truncated JPEG.
at::Tensor read_image(const std::string& path) {
  cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
  if (image.empty()) throw std::runtime_error(path + ": no such file, or not an image");
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
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

// A value of the metadata that export.py has written.
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
  // "480x320" in quotes, in place of the square that the network was trained at.
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

// Before anything is computed: the mask can be written, and is neither of the inputs, by a link either.
void check_output(const std::filesystem::path& mask, const std::filesystem::path& package,
                  const std::filesystem::path& image) {
  std::error_code missing;  // a file that is not there yet is no input
  for (const auto& input : {package, image})
    if (std::filesystem::equivalent(mask, input, missing))
      throw std::runtime_error(mask.string() + ": would overwrite an input; name another file");
  const auto folder = mask.has_parent_path() ? mask.parent_path() : std::filesystem::path(".");
  const bool exists = std::filesystem::exists(mask, missing);
  if (!std::filesystem::is_directory(folder, missing))
    throw std::runtime_error(folder.string() + ": no such folder");
  if (access((exists ? mask : folder).c_str(), W_OK) != 0)
    throw std::runtime_error(mask.string() + ": cannot be written");
  if (!cv::haveImageWriter(mask.string()))
    throw std::runtime_error(mask.string() + ": name it .png, or as another kind of image");
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: mask PACKAGE IMAGE MASK.png");
  check_output(argv[3], argv[1], argv[2]);
  c10::InferenceMode inference;
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  const auto network = open_package(argv[1]);
  const at::Tensor image = read_image(argv[2]);
  at::Tensor mask = predict(*network, image).mul(255).round().to(at::kByte).contiguous();
  const cv::Mat pixels(mask.size(0), mask.size(1), CV_8U, mask.data_ptr());
  if (!cv::imwrite(argv[3], pixels)) throw std::runtime_error(std::string(argv[3]) + ": not written");
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
