// The forward pass of DeepSeek V4.
#pragma once

#include "deepseek/deepseek.h"

namespace fathom::deepseek {

/// As forward(), for a model with Config::v4.
Tensor forward_v4(Graph& g, const Model& model, const Step& step);

}  // namespace fathom::deepseek
