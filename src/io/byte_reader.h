// Reads untrusted bytes front to back; every step is compared with the bytes left before anything is touched or
// allocated.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {

static_assert(std::endian::native == std::endian::little, "the formats are little endian and read in place");

/// A cursor over a file. Not thread-safe. `data` must outlive it.
/// All refusals are Error{kModel}: "path: what (byte offset N); expected .., got ..; try ..".
class ByteReader {
 public:
  /// Reads at most max_bytes of them, a bound on how much time and memory a hostile header can take.
  ByteReader(std::string path, const std::byte* data, uint64_t size_bytes, uint64_t max_bytes)
      : path_(std::move(path)),
        data_(data),
        size_(std::min(size_bytes, max_bytes)),
        extent_(size_bytes <= max_bytes
                    ? "the file"
                    : "the part of " + std::to_string(max_bytes) + " bytes where a header must end") {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return size_ - position_; }
  const std::string& path() const { return path_; }

  [[noreturn]] void fail(uint64_t offset, const std::string& what, const std::string& expected, const std::string& got,
                         const std::string& hint = "download or convert the file again") const {
    throw Error(ErrorCode::kModel, printable(path_, 400) + ": " + what + " (byte offset " + std::to_string(offset) +
                                       "); expected " + expected + ", got " + got + "; try to " + hint);
  }

  /// The next sizeof(T) bytes; `what` names the field in the refusal.
  template <typename T> T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  /// The next n_bytes, in place.
  std::string_view take(uint64_t n_bytes, std::string_view what) {
    if (n_bytes > left()) {
      fail(position_, extent_ + " ends inside " + std::string(what), std::to_string(n_bytes) + " bytes",
           std::to_string(left()) + " bytes left");
    }
    const std::string_view bytes(reinterpret_cast<const char*>(data_) + position_, n_bytes);
    position_ += n_bytes;
    return bytes;
  }

  /// A length of 8 bytes and that many bytes, at most max_bytes.
  std::string_view take_string(uint64_t max_bytes, std::string_view what) {
    const uint64_t at = position_;
    const auto length = read<uint64_t>(what);
    if (length > left()) {
      fail(at, std::string(what) + " is longer than " + extent_, "at most " + std::to_string(left()) + " bytes",
           std::to_string(length));
    }
    if (length > max_bytes)
      fail(at, std::string(what) + " is too long", "at most " + std::to_string(max_bytes) + " bytes",
           std::to_string(length));
    return take(length, what);
  }

  /// Refuses a count of things of at least min_bytes each that the bytes left cannot hold.
  void check_count(uint64_t at, uint64_t count, uint64_t min_bytes, const std::string& what) const {
    if (count > left() / min_bytes) {
      fail(at, "more " + what + " than " + extent_ + " can hold", "at most " + std::to_string(left() / min_bytes),
           std::to_string(count));
    }
  }

 private:
  std::string path_;
  const std::byte* data_;
  uint64_t size_;
  std::string extent_;
  uint64_t position_ = 0;
};

}  // namespace fathom
