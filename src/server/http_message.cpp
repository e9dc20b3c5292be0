#include "server/http_message.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/error.h"
#include "core/plain_text.h"
#include "core/printable.h"

namespace fathom {
namespace {

bool is_token_char(char c) {
  constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~";
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         kOthers.find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char); }

constexpr std::string_view kBlanks = " \t";

/// Whether a comma-separated header holds the word.
bool lists(std::string_view value, std::string_view word) {
  const std::string low = lower(value);
  for (std::string_view rest = low; !rest.empty();) {
    const size_t comma = rest.find(',');
    if (trimmed(rest.substr(0, comma), kBlanks) == word) return true;
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return false;
}

void read_request_line(std::string_view line, HttpRequest& request) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || last == first)
    throw HttpRefusal(400, "request line: malformed; expected METHOD /path HTTP/1.1");
  const std::string_view method = line.substr(0, first), version = line.substr(last + 1);
  std::string_view target = line.substr(first + 1, last - first - 1);
  if (!is_token(method) || method.size() > 32) throw HttpRefusal(400, "request line: malformed method");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    throw HttpRefusal(version.starts_with("HTTP/") ? 505 : 400,
                      "request line: expected HTTP/1.1, got " + in_quotes(version));
  }
  request.chunked_replies = request.keep_alive = version == "HTTP/1.1";
  if (std::any_of(target.begin(), target.end(),
                  [](char c) { return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f; })) {
    throw HttpRefusal(400, "request line: expected a target without spaces and control characters");
  }
  for (const std::string_view scheme : {"http://", "https://"}) {  // the absolute form, as sent to proxies
    if (!lower(target.substr(0, scheme.size())).starts_with(scheme)) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  if (target != "*" && !target.starts_with('/'))
    throw HttpRefusal(400, "request line: expected a path that begins with /, got " + in_quotes(target));
  target = target.substr(0, target.find('#'));
  const size_t question = target.find('?');
  request.method = method;
  request.path = target.substr(0, question);
  if (question != std::string_view::npos) request.query = target.substr(question + 1);
}

HttpHeader read_header(std::string_view line) {
  if (line.front() == ' ' || line.front() == '\t')
    throw HttpRefusal(400, "header: folded over two lines; expected NAME: VALUE");
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    throw HttpRefusal(400, "header: malformed; expected NAME: VALUE, got " + in_quotes(line.substr(0, 60)));
  }
  const std::string_view value = trimmed(line.substr(colon + 1), kBlanks);
  for (const char c : value) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f)
      throw HttpRefusal(400, "header " + in_quotes(line.substr(0, colon)) + ": holds control characters");
  }
  return {lower(line.substr(0, colon)), std::string(value)};
}

size_t count(const HttpRequest& request, std::string_view name) {
  return static_cast<size_t>(std::count_if(request.headers.begin(), request.headers.end(),
                                           [&](const HttpHeader& h) { return h.name == name; }));
}

void read_framing(HttpRequest& request) {
  if (count(request, "host") > 1 || (count(request, "host") == 0 && request.chunked_replies))
    throw HttpRefusal(400, "host: expected exactly one Host header");
  // A body's end is known in one way only, so that nothing between client and server can see another one.
  if (count(request, "transfer-encoding") > 0)
    throw HttpRefusal(411, "body: Transfer-Encoding is not taken; expected a Content-Length");
  if (count(request, "content-length") > 1) throw HttpRefusal(400, "content-length: given twice; expected one");
  if (count(request, "content-length") == 1) {
    const std::string_view text = request.header("content-length");
    uint64_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (text.empty() || !digits || end != text.data() + text.size())
      throw HttpRefusal(400, "content-length: expected a number, got " + in_quotes(text));
    if (error == std::errc::result_out_of_range)
      throw HttpRefusal(413, "body: too large; got a Content-Length of " + in_quotes(text));
    request.content_length = length;
  } else if (request.method == "POST" || request.method == "PUT" || request.method == "PATCH") {
    throw HttpRefusal(411, "body: expected a Content-Length");
  }
  const std::string_view encoding = request.header("content-encoding");
  if (!encoding.empty() && lower(encoding) != "identity")
    throw HttpRefusal(415, "body: compressed; expected plain bytes, got Content-Encoding " + in_quotes(encoding));
  if (lists(request.header("connection"), "close")) request.keep_alive = false;
  request.expects_continue = lists(request.header("expect"), "100-continue") && request.chunked_replies;
}

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (header.name == name) return header.value;
  }
  return {};
}

std::optional<size_t> find_head(std::string_view bytes, const HeadLimits& limits) {
  size_t begin = 0, lines = 0;
  for (;;) {
    const size_t end = bytes.find("\r\n", begin);
    const size_t length = (end == std::string_view::npos ? bytes.size() : end) - begin;
    if (length > limits.max_line_bytes) {
      throw HttpRefusal(lines == 0 ? 414 : 431, std::string(lines == 0 ? "request line" : "header") +
                                                    ": too long; expected at most " +
                                                    std::to_string(limits.max_line_bytes) + " bytes");
    }
    if (begin + length > limits.max_bytes)
      throw HttpRefusal(431, "headers: too long; expected at most " + std::to_string(limits.max_bytes) + " bytes");
    if (end == std::string_view::npos) return {};
    if (length == 0) return end + 2;
    if (++lines > limits.max_headers + 1)
      throw HttpRefusal(431, "headers: too many; expected at most " + std::to_string(limits.max_headers));
    begin = end + 2;
  }
}

HttpRequest parse_head(std::string_view head, const HeadLimits& limits) {
  FATHOM_CHECK(find_head(head, limits) == head.size(), "a head that is not complete");
  HttpRequest request;
  bool first = true;
  for (size_t begin = 0;;) {
    const size_t end = head.find("\r\n", begin);
    const std::string_view line = head.substr(begin, end - begin);
    begin = end + 2;
    if (first) {
      read_request_line(line, request);
      first = false;
    } else if (line.empty()) {
      break;
    } else {
      request.headers.push_back(read_header(line));
    }
  }
  read_framing(request);
  return request;
}

std::string_view reason_phrase(int status) {
  static constexpr std::array<std::pair<int, std::string_view>, 18> kPhrases = {{
      {200, "OK"},
      {204, "No Content"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {403, "Forbidden"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {411, "Length Required"},
      {413, "Content Too Large"},
      {414, "URI Too Long"},
      {415, "Unsupported Media Type"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {500, "Internal Server Error"},
      {501, "Not Implemented"},
      {503, "Service Unavailable"},
      {505, "HTTP Version Not Supported"},
  }};
  for (const auto& [known, phrase] : kPhrases) {
    if (known == status) return phrase;
  }
  return "Status";
}

std::string response_head(int status, std::string_view content_type,
                          const std::vector<std::pair<std::string, std::string>>& headers,
                          std::optional<size_t> content_length, bool chunked, bool keep_alive) {
  std::string head = "HTTP/1.1 " + std::to_string(status) + " " + std::string(reason_phrase(status)) + "\r\n";
  const auto add = [&](std::string_view name, std::string_view value) {
    FATHOM_CHECK(value.find_first_of("\r\n") == std::string_view::npos,
                 "a line break in the header " + std::string(name));
    head.append(name).append(": ").append(value).append("\r\n");
  };
  if (!content_type.empty()) add("Content-Type", content_type);
  if (content_length) add("Content-Length", std::to_string(*content_length));
  if (chunked) add("Transfer-Encoding", "chunked");
  add("Connection", keep_alive ? "keep-alive" : "close");
  add("X-Content-Type-Options", "nosniff");
  for (const auto& [name, value] : headers) add(name, value);
  return head + "\r\n";
}

}  // namespace fathom
