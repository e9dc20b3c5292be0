#include "server/http_message.h"

#include <doctest/doctest.h>

#include <string>

using namespace fathom;

namespace {

int status_of(const std::string& head) {
  try {
    HeadLimits limits;
    const std::optional<size_t> length = find_head(head, limits);
    if (!length) return 0;
    parse_head(std::string_view(head).substr(0, *length), limits);
    return 200;
  } catch (const HttpRefusal& refusal) {
    return refusal.status();
  }
}

}  // namespace

TEST_CASE("a head is found only when it is complete") {
  const std::string head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  for (size_t n = 0; n < head.size(); ++n) CHECK_FALSE(find_head(head.substr(0, n), {}).has_value());
  CHECK(find_head(head + "more", {}) == head.size());
}

TEST_CASE("a request's parts are read") {
  const HttpRequest r = parse_head(
      "POST /v1/messages?beta=true HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Api-Key:  k \r\nConnection: "
      "keep-alive, Close\r\nExpect: 100-continue\r\n\r\n",
      {});
  CHECK(r.method == "POST");
  CHECK(r.path == "/v1/messages");
  CHECK(r.query == "beta=true");
  CHECK(r.content_length == 12);
  CHECK(r.header("x-api-key") == "k");
  CHECK_FALSE(r.keep_alive);
  CHECK(r.expects_continue);
}

TEST_CASE("the absolute form of a target is read as its path") {
  CHECK(parse_head("GET http://localhost:8080/health HTTP/1.1\r\nHost: a\r\n\r\n", {}).path == "/health");
  CHECK(parse_head("GET http://localhost HTTP/1.1\r\nHost: a\r\n\r\n", {}).path == "/");
}

TEST_CASE("ambiguous and malformed heads have their statuses") {
  CHECK(status_of("GET / HTTP/1.1\r\nHost: a\r\n\r\n") == 200);
  CHECK(status_of("GET / HTTP/1.0\r\n\r\n") == 200);
  CHECK(status_of("GET / HTTP/1.1\r\n\r\n") == 400);
  CHECK(status_of("GET  HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(status_of("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(status_of("G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(status_of("GET / HTTP/3.0\r\nHost: a\r\n\r\n") == 505);
  CHECK(status_of("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n") == 400);
  CHECK(status_of("GET / HTTP/1.1\r\nHost: a\r\nX: a\x01y\r\n\r\n") == 400);
  CHECK(status_of("POST / HTTP/1.1\r\nHost: a\r\n\r\n") == 411);
  CHECK(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n") == 411);
  CHECK(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n") == 400);
  CHECK(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n") == 400);
  CHECK(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Encoding: br\r\n\r\n") == 415);
}

TEST_CASE("limits hold while the head is still coming") {
  CHECK(status_of("GET /" + std::string(9000, 'a')) == 414);
  CHECK(status_of("GET / HTTP/1.1\r\nX: " + std::string(9000, 'a')) == 431);
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 200; ++i) many += "A: b\r\n";
  CHECK(status_of(many) == 431);
}

TEST_CASE("no line break gets into a response's head") {
  CHECK_THROWS(response_head(200, "text/plain", {{"X", "a\r\nSet-Cookie: b"}}, 0, false, true));
}
