// A fixture whose metadata or tensors are changed before they are read as a model.
#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <string>

#include "core/error.h"
#include "deepseek/deepseek.h"
#include "io/gguf.h"

namespace fathom::testing {

using Change = std::function<void(Metadata&, std::map<std::string, Tensor>&)>;

/// The message with which the changed file is refused, empty if it is not. `has_mtp`: as read_config.
inline std::string refusal(const GgufModel& file, bool has_mtp, const Change& change) {
  Metadata metadata = file.metadata();
  std::map<std::string, Tensor> tensors = file.tensors();
  change(metadata, tensors);
  try {
    deepseek::bind_weights(deepseek::read_config(metadata, has_mtp, true), tensors);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kModel);
    return e.what();
  }
}

}  // namespace fathom::testing
