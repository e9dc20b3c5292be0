#include "core/error.h"

namespace fathom {

void check_failed(const char* condition, const char* file, int line, const std::string& message) {
  throw BugError(std::string(file) + ":" + std::to_string(line) + ": " + message + " (" + condition + ")");
}

}  // namespace fathom
