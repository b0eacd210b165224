// What both programs do with files: read the image, check and write the mask.

#pragma once

#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// Upright RGB, 8 bits a channel. OpenCV drops transparency, the low half of 16 bits and the
// orientation of a WebP, and fills in the missing end of a truncated JPEG.
inline cv::Mat read_image(const std::string& path) {
  std::error_code missing;
  if (std::filesystem::is_directory(path, missing)) throw std::runtime_error(path + ": a folder, not an image");
  if (access(path.c_str(), R_OK) != 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
  if (image.empty())
    throw std::runtime_error(path + ": not an image that OpenCV reads; convert it to PNG or JPEG");
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
  return image;
}

// Before anything is computed: the mask can be written, and is neither of the inputs, by a link
// either.
inline void check_output(const std::filesystem::path& mask, const std::filesystem::path& network,
                         const std::filesystem::path& image) {
  std::error_code missing;  // a file that is not there yet is no input
  for (const auto& input : {network, image})
    if (std::filesystem::equivalent(mask, input, missing))
      throw std::runtime_error(mask.string() + ": would overwrite an input; name another file");
  const auto folder = mask.has_parent_path() ? mask.parent_path() : std::filesystem::path(".");
  if (!std::filesystem::is_directory(folder, missing))
    throw std::runtime_error(folder.string() + ": no such folder");
  if (std::filesystem::is_directory(mask, missing))
    throw std::runtime_error(mask.string() + ": a folder; name a file");
  const bool exists = std::filesystem::exists(mask, missing);
  if ((exists && access(mask.c_str(), W_OK) != 0) || access(folder.c_str(), W_OK | X_OK) != 0)
    throw std::runtime_error(mask.string() + ": cannot be written (" + std::strerror(errno) + ")");
  std::string suffix = mask.extension().string();
  for (char& c : suffix) c = char(std::tolower(c));
  const std::set<std::string> suffixes{".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pgm"};
  if (!suffixes.count(suffix) || !cv::haveImageWriter(mask.string()))
    throw std::runtime_error(mask.string() + ": name it .png, .jpg, .webp, .tif, .bmp or .pgm");
}

// Whole or not at all: what was there before stays if the disk is full.
inline void write_mask(const std::filesystem::path& path, const cv::Mat& mask) {
  std::vector<uchar> bytes;
  if (!cv::imencode(path.extension().string(), mask, bytes))
    throw std::runtime_error(path.string() + ": OpenCV cannot encode it; name it .png");
  std::error_code missing;
  const auto target = std::filesystem::weakly_canonical(path, missing);
  const bool is_file = !std::filesystem::exists(target, missing) || std::filesystem::is_regular_file(target, missing);
  const auto file = is_file ? std::filesystem::path(target.string() + ".part") : target;  // else a device
  std::ofstream stream(file, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  stream.close();
  if (!stream) {
    const std::string reason = std::strerror(errno);
    if (is_file) std::filesystem::remove(file, missing);
    throw std::runtime_error(path.string() + ": not written (" + reason + ")");
  }
  if (is_file) std::filesystem::rename(file, target);
}
