#include <limits>
#include <sstream>
#include <string>

#include "core/error.h"
#include "sampling/sampler.h"

namespace fathom {
namespace {

template <typename T> void check_range(const std::string& field, T value, T lowest, T highest, T usual) {
  if (value >= lowest && value <= highest) return;  // false for NaN
  std::ostringstream text;
  text << "sampling: " << field << " is out of range; expected " << lowest << " to " << highest << ", got " << value
       << "; try " << usual;
  throw Error(ErrorCode::kUsage, text.str());
}

}  // namespace

void SamplingParams::validate(int64_t vocab_size) const {
  check_range("temperature", temperature, 0.0f, 100.0f, 0.6f);
  check_range("top_k", top_k, 0, std::numeric_limits<int32_t>::max(), 0);
  check_range("top_p", top_p, 0.0f, 1.0f, 0.95f);
  check_range("min_p", min_p, 0.0f, 1.0f, 0.0f);
  check_range("repeat_penalty", repeat_penalty, 0.01f, 100.0f, 1.0f);
  check_range("repeat_last_n", repeat_last_n, 0, std::numeric_limits<int32_t>::max(), 64);
  check_range("frequency_penalty", frequency_penalty, -100.0f, 100.0f, 0.0f);
  check_range("presence_penalty", presence_penalty, -100.0f, 100.0f, 0.0f);
  if (logit_bias.size() > kMaxLogitBias) {
    throw Error(ErrorCode::kUsage, "sampling: logit_bias has too many entries; expected at most " +
                                       std::to_string(kMaxLogitBias) + ", got " + std::to_string(logit_bias.size()) +
                                       "; try fewer");
  }
  for (const auto& [id, bias] : logit_bias) {
    if (id < 0 || id >= vocab_size) {
      throw Error(ErrorCode::kUsage, "sampling: logit_bias names an unknown token; expected an id from 0 to " +
                                         std::to_string(vocab_size - 1) + ", got " + std::to_string(id) +
                                         "; try fathom tokenize");
    }
    if (bias != -std::numeric_limits<float>::infinity()) {
      check_range("logit_bias of token " + std::to_string(id), bias, -1000.0f, 1000.0f, -100.0f);
    }
  }
}

}  // namespace fathom
