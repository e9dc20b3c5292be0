// A request's head as text, read strictly, and responses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

/// What one head may hold.
struct HeadLimits {
  size_t max_bytes = 64 * 1024;  ///< request line, headers and the empty line
  size_t max_line_bytes = 8 * 1024;
  size_t max_headers = 100;
};

struct HttpHeader {
  std::string name;  ///< in lower case
  std::string value;
};

struct HttpRequest {
  std::string method;
  std::string path;   ///< without the query, not decoded: every route is plain text
  std::string query;  ///< behind the question mark
  bool keep_alive = true;
  bool chunked_replies = true;  ///< HTTP/1.1
  bool expects_continue = false;
  std::optional<uint64_t> content_length;
  std::vector<HttpHeader> headers;
  std::string body;

  /// The first header of that name (lower case), empty if there is none.
  std::string_view header(std::string_view name) const;
};

/// The request cannot be taken; the connection is closed behind the answer.
class HttpRefusal : public std::runtime_error {
 public:
  HttpRefusal(int status, const std::string& message) : std::runtime_error(message), status_(status) {}
  int status() const { return status_; }

 private:
  int status_;
};

/// Length of the head at the beginning of `bytes`, its empty line included; nothing if it is not complete. Throws
/// HttpRefusal as soon as it is over a limit.
std::optional<size_t> find_head(std::string_view bytes, const HeadLimits& limits);

/// Reads a complete head. Throws HttpRefusal: 400 for what is malformed or ambiguous (two lengths, folded lines,
/// control characters, a missing Host), 411 for a body without a plain Content-Length, 415 for a compressed one, 505
/// for other versions of HTTP. Source: RFC 9110 and 9112; stricter where they leave a choice.
HttpRequest parse_head(std::string_view head, const HeadLimits& limits);

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  ///< further ones; values without line breaks (checked)
};

/// "Not Found" for 404.
std::string_view reason_phrase(int status);

/// The head of a response up to the empty line.
std::string response_head(int status, std::string_view content_type,
                          const std::vector<std::pair<std::string, std::string>>& headers,
                          std::optional<size_t> content_length, bool chunked, bool keep_alive);

}  // namespace fathom
