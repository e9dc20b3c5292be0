// What the deepseek4 architecture adds to a configuration.
#pragma once

#include "deepseek/config.h"
#include "deepseek/config_reader.h"

namespace fathom::deepseek {

/// Reads attention, rotation, hyper-connections and limits into c, whose layers, heads and experts are known. Throws
/// Error{kModel} as read_config does.
void read_v4(const Reader& r, Config& c);

}  // namespace fathom::deepseek
