#include "server/api_error.h"

#include <new>

#include "core/error.h"
#include "server/json_fields.h"

namespace fathom {
namespace {

std::string type_of(int status, ApiStyle style) {
  const bool anthropic = style == ApiStyle::kAnthropic;
  switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return anthropic ? "request_too_large" : "invalid_request_error";
    case 429: return "rate_limit_error";
    case 500: return anthropic ? "api_error" : "server_error";
    case 501: return anthropic ? "invalid_request_error" : "not_supported_error";
    case 503: return anthropic ? "overloaded_error" : "unavailable_error";
    default: return "invalid_request_error";
  }
}

}  // namespace

ApiError current_error() {
  try {
    throw;
  } catch (const ApiError& error) {
    return error;
  } catch (const HttpRefusal& refusal) {
    return ApiError(refusal.status(), refusal.what());
  } catch (const Error& error) {
    switch (error.code()) {
      case ErrorCode::kUsage: return ApiError(400, error.what());
      case ErrorCode::kNoMemory: return ApiError(503, error.what());
      case ErrorCode::kDevice: {
        ApiError broken(503, error.what());
        broken.may_retry = false;
        return broken;
      }
      default: return ApiError(500, error.what());
    }
  } catch (const std::bad_alloc&) {
    return ApiError(503, "memory: the system gave no more; try a shorter request");
  } catch (const std::exception&) {
    return ApiError(500, "server: a bug in fathom itself ended this request");
  }
}

ApiError prompt_too_long(int64_t n_prompt_tokens, int64_t n_ctx) {
  // The first words are those that clients of both APIs look for.
  ApiError error(400, "prompt is too long: " + std::to_string(n_prompt_tokens) + " tokens > " +
                          std::to_string(n_ctx - 1) + " maximum; the request exceeds the available context size of " +
                          std::to_string(n_ctx) + " tokens; try a shorter prompt or a larger --ctx");
  error.type = "exceed_context_size_error";
  error.details["n_prompt_tokens"] = n_prompt_tokens;
  error.details["n_ctx"] = n_ctx;
  return error;
}

ChatJson error_body(const ApiError& error, ApiStyle style) {
  ChatJson inner = ChatJson::object();
  if (style == ApiStyle::kOpenAi) inner["code"] = error.status;
  // Clients of the Anthropic API know a fixed list of types.
  inner["type"] = error.type.empty() || style == ApiStyle::kAnthropic ? type_of(error.status, style) : error.type;
  inner["message"] = error.what();
  for (const auto& [key, value] : error.details.items()) inner[key] = value;
  ChatJson body = ChatJson::object();
  if (style == ApiStyle::kAnthropic) body["type"] = "error";
  body["error"] = std::move(inner);
  return body;
}

HttpResponse error_response(const ApiError& error, ApiStyle style) {
  HttpResponse response;
  response.status = error.status;
  response.body = dump_json(error_body(error, style));
  if (error.retry_after_s) response.headers.emplace_back("Retry-After", std::to_string(*error.retry_after_s));
  if (!error.may_retry) response.headers.emplace_back("x-should-retry", "false");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace fathom
