// The shape of V4-Flash.
#pragma once

#include "engine/synthetic.h"

namespace fathom {

constexpr const char* kV4FlashShape = "v4-flash";

/// Metadata and tensors without data, as synthetic_model.
ModelSource v4_flash_tensors(const SyntheticOptions& options);

}  // namespace fathom
