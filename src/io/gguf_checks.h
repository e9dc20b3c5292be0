// What no DeepSeek model can mean, refused before anything is computed from it.
#pragma once

#include "io/gguf_file.h"

namespace fathom {

/// Checks keys that decide sizes and indices: layer, head and expert counts; element types and lengths of the
/// tokenizer's arrays; special token ids inside the vocabulary. A key that is absent is not asked for here: whoever
/// needs it does. Throws Error{kModel} naming path, key, byte offset, expected and found.
void check_model_metadata(const GgufFile& gguf);

}  // namespace fathom
