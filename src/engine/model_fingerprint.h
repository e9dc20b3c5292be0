// A short name for the content of a model file.
#pragma once

#include <map>
#include <string>

#include "core/metadata.h"
#include "core/tensor.h"

namespace fathom {

/// Architecture and a hash of the architecture's settings and of the tensors: names, types, shapes and the beginning,
/// middle and end of their bytes (reading all of a model of 400 GB would take minutes). Against mistakes, not
/// attackers.
std::string model_fingerprint(const Metadata& metadata, const std::map<std::string, Tensor>& tensors);

}  // namespace fathom
