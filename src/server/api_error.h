// What went wrong, in the words of each API.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "server/http_message.h"
#include "text/chat_json.h"

namespace fathom {

enum class ApiStyle { kOpenAi, kAnthropic };

/// A refusal with its HTTP status.
struct ApiError : std::runtime_error {
  ApiError(int http_status, const std::string& message) : std::runtime_error(message), status(http_status) {}

  int status;
  std::string type;                       ///< empty: what the API calls this status
  ChatJson details = ChatJson::object();  ///< further members of the error object
  std::optional<int> retry_after_s;
  bool may_retry = true;  ///< false tells clients that trying again cannot help
};

/// Whatever is being handled in a catch block: Error by its code (kUsage is 400, kNoMemory 503, kDevice 503 without
/// retry, all else 500), HttpRefusal by its status, memory 503, anything else 500 without details.
ApiError current_error();

/// A prompt that does not fit: 400, with both numbers as members for clients that shorten their history.
ApiError prompt_too_long(int64_t n_prompt_tokens, int64_t n_ctx);

ChatJson error_body(const ApiError& error, ApiStyle style);
HttpResponse error_response(const ApiError& error, ApiStyle style);

}  // namespace fathom
