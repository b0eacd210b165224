// Predicts the mask of an image in C++, with ONNX Runtime, from an .onnx file of export.py,
// including --static, --half and --int8, but for several classes and --img-size auto.
//
//     mask_onnx NETWORK.onnx IMAGE MASK.png
//
// The image is prepared as in predict.py, so the masks differ by single levels at most, if both
// read the same pixels (see read_image). Size, mean and std are in the file.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <opencv2/core/utils/logger.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "files.h"

// Resizes rows with a triangle filter that widens when the image shrinks (antialias), which Pillow
// and torch have and OpenCV lacks. Bytes are resized with weights of 15 bits, and rounded.
cv::Mat resize_rows(const cv::Mat& image, int rows, bool bytes) {
  const double scale = double(image.rows) / rows, support = std::max(scale, 1.0);
  cv::Mat result = cv::Mat::zeros(rows, image.cols, image.type());
  std::vector<std::vector<double>> weights(rows);
  double heaviest = 0;
  for (int row = 0; row < rows; row++) {
    const double centre = (row + 0.5) * scale;
    double sum = 0;
    for (int y = 0; y < image.rows; y++) {
      const double weight = std::max(0.0, 1 - std::abs((y + 0.5 - centre) / support));
      weights[row].push_back(weight);
      sum += weight;
    }
    for (double& weight : weights[row]) heaviest = std::max(heaviest, weight /= sum);
  }
  const double bits = std::ceil(std::log2((32768 - 0.5) / heaviest)) - 1;
  const double unit = std::exp2(std::min(bits, 22.0));
  for (int row = 0; row < rows; row++) {
    cv::Mat target = result.row(row);
    for (int y = 0; y < image.rows; y++) {
      double weight = weights[row][y];
      if (bytes) weight = std::floor(weight * unit + 0.5) / unit;
      if (weight > 0) cv::scaleAdd(image.row(y), weight, target, target);
    }
    float* values = target.ptr<float>();
    if (bytes)
      for (int i = 0; i < target.cols * target.channels(); i++)
        values[i] = std::clamp(std::floor(values[i] + 0.5f), 0.f, 255.f);
  }
  return result;
}

cv::Mat resize(const cv::Mat& image, int height, int width, bool bytes) {
  return resize_rows(resize_rows(image.t(), width, bytes).t(), height, bytes);
}

// A value of the metadata that export.py writes; "" if there is none.
std::string get_value(const Ort::Session& network, const char* name) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto found = network.GetModelMetadata().LookupCustomMetadataMapAllocated(name, allocator);
  return found ? found.get() : "";
}

// "[0.485, 0.456, 0.406]" to its three numbers.
std::vector<float> get_numbers(const Ort::Session& network, const char* name) {
  std::string list = get_value(network, name);
  std::replace_if(list.begin(), list.end(), [](char c) { return c == '[' || c == ',' || c == ']'; }, ' ');
  std::istringstream words(list);
  std::vector<float> values;
  for (float value; words >> value;) values.push_back(value);
  if (values.size() != 3)
    throw std::runtime_error(std::string("the network's metadata lack ") + name +
                             ": was it made by export.py?");
  return values;
}

// The input's width and height: those of the graph if fixed, else of the metadata.
cv::Size get_size(const Ort::Session& network) {
  const auto shape = network.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != 4) throw std::runtime_error("not a network of images N×3×H×W");
  if (shape[2] > 0 && shape[3] > 0) return cv::Size(int(shape[3]), int(shape[2]));
  const std::string rectangle = get_value(network, "input_size");
  int width = 0, height = 0;
  if (std::sscanf(rectangle.c_str(), "\"%dx%d\"", &width, &height) == 2) return {width, height};
  if (rectangle == "\"auto\"")
    throw std::runtime_error("the network's size depends on the image; export it with --img-size");
  const std::string side = get_value(network, rectangle.empty() ? "img_size" : "input_size");
  if (side.empty()) throw std::runtime_error("the network's metadata lack img_size: was it made by export.py?");
  if (std::sscanf(side.c_str(), "%d", &width) != 1 || width < 1)
    throw std::runtime_error("the network's metadata has no size in img_size, but " + side);
  return {width, width};
}

// The map of an image, H×W in [0, 1].
cv::Mat predict(Ort::Session& network, const cv::Mat& image) {
  const std::string object_map = get_value(network, "object_map");
  if (object_map == "null") throw std::runtime_error("a network of several classes gives no mask");
  const auto mean = get_numbers(network, "mean"), std = get_numbers(network, "std");
  const cv::Size size = get_size(network);
  std::vector<cv::Mat> channels;
  cv::split(resize(image, size.height, size.width, true), channels);
  std::vector<float> input;
  for (int c = 0; c < 3; c++)
    for (const float value : cv::Mat_<float>(channels[c])) input.push_back((value / 255 - mean[c]) / std[c]);

  const std::vector<int64_t> shape{1, 3, size.height, size.width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto tensor = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape.data(), 4);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = network.GetInputNameAllocated(0, allocator);
  const auto output_name = network.GetOutputNameAllocated(0, allocator);
  const char *from = input_name.get(), *to = output_name.get();
  auto maps = network.Run(Ort::RunOptions{}, &from, &tensor, 1, &to, 1);
  int channel = 0;
  std::sscanf(object_map.c_str(), "%d", &channel);
  const auto found = maps[0].GetTensorTypeAndShapeInfo();
  const auto sides = found.GetShape();
  const bool fits = sides.size() == 4 && channel >= 0 && channel < sides[1] && sides[2] == size.height &&
                    sides[3] == size.width && found.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (!fits) throw std::runtime_error("the network's output is not what its metadata says");
  float* values = maps[0].GetTensorMutableData<float>() + size_t(channel) * size.area();
  return resize(cv::Mat(size, CV_32F, values), image.rows, image.cols, false);
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: mask_onnx NETWORK.onnx IMAGE MASK.png");
  check_output(argv[3], argv[1], argv[2]);
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  Ort::Env environment(ORT_LOGGING_LEVEL_FATAL);
  Ort::Session network(environment, argv[1], Ort::SessionOptions{});
  cv::Mat image, mask;
  read_image(argv[2]).convertTo(image, CV_32F);
  predict(network, image).convertTo(mask, CV_8U, 255);  // rounds, from 0 to 255
  write_mask(argv[3], mask);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
