// Which chat format a model file wants.
#pragma once

#include "core/metadata.h"
#include "text/chat_generation.h"
#include "text/vocab.h"

namespace fathom {

/// Joins what the file says (template, architecture) with what its vocabulary holds and asks the text layer's rules.
ChatGeneration choose_chat_generation(const Metadata& metadata, const Vocab& vocab);

}  // namespace fathom
