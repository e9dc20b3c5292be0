#include "io/safetensors_json.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDimensions = 16;

// A reader of events in which everything is unexpected; the two formats allow what they know.
class StrictReader : public nlohmann::json_sax<Json> {
 public:
  explicit StrictReader(std::string path) : path_(std::move(path)) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a bool"); }
  bool number_integer(number_integer_t value) override { unexpected("the number " + std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { unexpected("the number " + std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { unexpected("the number " + printable(text, 40)); }
  bool string(string_t& text) override { unexpected("the text " + in_quotes(text)); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool start_array(size_t) override { unexpected("a list"); }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    fail("damaged JSON (byte offset " + std::to_string(position) + " of the text)", "valid JSON", "something else");
  }

 protected:
  [[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) const {
    throw Error(ErrorCode::kModel, printable(path_, 400) + ": " + what + "; expected " + expected + ", got " + got +
                                       "; try to download the file again");
  }
  [[noreturn]] void unexpected(const std::string& got) const { fail("a wrong value " + place(), expected(), got); }
  virtual std::string place() const = 0;
  virtual std::string expected() const = 0;

 private:
  std::string path_;
};

class HeaderReader final : public StrictReader {
 public:
  using StrictReader::StrictReader;
  SafetensorsHeader header;

  bool start_object(size_t) override {
    switch (state_) {
      case State::kStart: state_ = State::kNames; return true;
      case State::kEntry: state_ = State::kFields; return true;
      case State::kMetadata: state_ = State::kMetadataKeys; return true;
      default: unexpected("an object");
    }
  }
  bool key(string_t& key) override {
    if (state_ == State::kNames) {
      name_ = key;
      if (key == "__metadata__") {
        state_ = State::kMetadata;
      } else {
        state_ = State::kEntry;
        header.entries.emplace_back().name = key;
        seen_ = 0;
      }
    } else if (state_ == State::kMetadataKeys) {
      metadata_key_ = key;
      state_ = State::kMetadataValue;
    } else if (key == "dtype") {
      enter(State::kDtype, 1);
    } else if (key == "shape") {
      enter(State::kShape, 2);
    } else if (key == "data_offsets") {
      enter(State::kOffsets, 4);
    } else {
      fail("an unknown field of tensor " + in_quotes(name_), "dtype, shape and data_offsets", in_quotes(key));
    }
    return true;
  }
  bool string(string_t& text) override {
    if (state_ == State::kDtype) {
      header.entries.back().dtype = text;
      state_ = State::kFields;
    } else if (state_ == State::kMetadataValue) {
      header.metadata.insert_or_assign(metadata_key_, text);
      state_ = State::kMetadataKeys;
    } else {
      unexpected("the text " + in_quotes(text));
    }
    return true;
  }
  bool start_array(size_t) override {
    if (state_ == State::kShape) {
      state_ = State::kDims;
    } else if (state_ == State::kOffsets) {
      state_ = State::kOffsetPair;
    } else {
      unexpected("a list");
    }
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kDims) {
      std::vector<uint64_t>& shape = header.entries.back().shape;
      if (shape.size() == kMaxDimensions) unexpected("more dimensions");
      shape.push_back(value);
    } else if (state_ == State::kOffsetPair && n_offsets_ < 2) {
      (n_offsets_ == 0 ? header.entries.back().begin : header.entries.back().end) = value;
      ++n_offsets_;
    } else {
      unexpected("the number " + std::to_string(value));
    }
    return true;
  }
  bool end_array() override {
    if (state_ == State::kOffsetPair && n_offsets_ != 2) unexpected("a list of " + std::to_string(n_offsets_));
    n_offsets_ = 0;
    state_ = State::kFields;
    return true;
  }
  bool end_object() override {
    if (state_ == State::kFields && seen_ != 7)
      fail("an incomplete description of tensor " + in_quotes(name_), "dtype, shape and data_offsets", "fewer fields");
    state_ = state_ == State::kNames ? State::kEnd : State::kNames;
    return true;
  }

 private:
  enum class State {
    kStart,
    kNames,
    kEntry,
    kFields,
    kDtype,
    kShape,
    kDims,
    kOffsets,
    kOffsetPair,
    kMetadata,
    kMetadataKeys,
    kMetadataValue,
    kEnd
  };

  void enter(State field, int bit) {
    if ((seen_ & bit) != 0)
      fail("tensor " + in_quotes(name_) + " has a field twice", "every field once", "a second one");
    seen_ |= bit;
    state_ = field;
  }
  std::string place() const override { return name_.empty() ? "at the start of the header" : "at " + in_quotes(name_); }
  std::string expected() const override {
    switch (state_) {
      case State::kDtype: return "a dtype name";
      case State::kShape: return "a list of dimensions";
      case State::kDims: return "at most " + std::to_string(kMaxDimensions) + " dimensions, integers of at least 0";
      case State::kOffsets:
      case State::kOffsetPair: return "two offsets of at least 0";
      case State::kMetadataValue: return "a text";
      default: return "an object";
    }
  }

  State state_ = State::kStart;
  std::string name_;
  std::string metadata_key_;
  int seen_ = 0;  ///< bits of the fields dtype, shape, data_offsets
  int n_offsets_ = 0;
};

// "weight_map" is kept, everything else at the top level is skipped, up to a depth that no index has.
class IndexReader final : public StrictReader {
 public:
  using StrictReader::StrictReader;
  std::map<std::string, std::string> weight_map;
  bool has_weight_map = false;

  bool null() override { return skip("null"); }
  bool boolean(bool) override { return skip("a bool"); }
  bool number_integer(number_integer_t) override { return skip("a number"); }
  bool number_unsigned(number_unsigned_t) override { return skip("a number"); }
  bool number_float(number_float_t, const string_t&) override { return skip("a number"); }
  bool string(string_t& text) override {
    if (!in_weight_map()) return skip("a text");
    if (!weight_map.emplace(key_, text).second)
      fail("tensor " + in_quotes(key_) + " appears twice", "every tensor once", "a second one");
    return true;
  }
  bool start_object(size_t) override {
    if (in_weight_map()) unexpected("an object");
    return deeper();
  }
  bool start_array(size_t) override { return skip("a list") && deeper(); }
  bool end_array() override { return --depth_, true; }
  bool end_object() override { return --depth_, true; }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      top_key_ = key;
      has_weight_map = has_weight_map || key == "weight_map";
    }
    key_ = key;
    return true;
  }

 private:
  bool in_weight_map() const { return top_key_ == "weight_map" && depth_ == 2; }
  bool skip(const char* got) {
    if (depth_ == 0 || top_key_ == "weight_map") unexpected(got);
    return true;
  }
  bool deeper() {
    constexpr int kMaxDepth = 16;
    if (++depth_ > kMaxDepth) fail("JSON nested too deeply", "at most 16 levels", "more");
    return true;
  }
  std::string place() const override { return key_.empty() ? "at the start" : "at " + in_quotes(key_); }
  std::string expected() const override {
    return depth_ == 0 ? "an object" : depth_ == 1 ? "an object of file names" : "a file name";
  }

  int depth_ = 0;
  std::string top_key_;
  std::string key_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view json) {
  HeaderReader reader(path);
  Json::sax_parse(json.begin(), json.end(), &reader);
  return std::move(reader.header);
}

std::map<std::string, std::string> parse_safetensors_index(const std::string& path, std::string_view json) {
  IndexReader reader(path);
  Json::sax_parse(json.begin(), json.end(), &reader);
  if (!reader.has_weight_map) {
    throw Error(ErrorCode::kModel, printable(path, 400) +
                                       ": not an index of a checkpoint; expected the key 'weight_map', got none; try "
                                       "model.safetensors.index.json");
  }
  return std::move(reader.weight_map);
}

}  // namespace fathom
