// How a refusal travels: thrown as Error where the world is wrong, turned into an exit code or HTTP status at the top.
#pragma once

#include <stdexcept>
#include <string>

namespace fathom {

/// What is at fault. The values are the program's exit codes.
enum class ErrorCode {
  kRuntime = 1,   ///< it failed while running
  kUsage = 2,     ///< flags, values, request fields
  kModel = 3,     ///< the model or another input file: missing, damaged, unsupported
  kNoMemory = 4,  ///< does not fit
  kDevice = 5,    ///< a device failed
  kInterrupted = 130,
};

/// The request or the world is wrong. Message: "where: what; expected x, got y; try z" on one line.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// A bug in the program itself: a check at an API border did not hold.
class BugError : public std::logic_error {
  using std::logic_error::logic_error;
};

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& message);

}  // namespace fathom

/// Always-on check at API borders; `message` is any expression that converts to std::string.
#define FATHOM_CHECK(condition, message)                                                 \
  do {                                                                                   \
    if (!(condition)) ::fathom::check_failed(#condition, __FILE__, __LINE__, (message)); \
  } while (false)
