#include "server/api.h"

#include <doctest/doctest.h>

#include <algorithm>

using namespace fathom;

namespace {

std::optional<HttpResponse> admitted(Api& api, const std::string& line,
                                     const std::string& headers = "Host: localhost\r\n") {
  return api.handler().admit(parse_head(line + " HTTP/1.1\r\n" + headers + "\r\n", {}));
}

int status_of(Api& api, const std::string& line, const std::string& headers = "Host: localhost\r\n") {
  const std::optional<HttpResponse> response = admitted(api, line, headers);
  return response ? response->status : 200;
}

}  // namespace

TEST_CASE("while the model is loading everything but the page says so") {
  Api api({});
  const std::optional<HttpResponse> response = admitted(api, "GET /health");
  REQUIRE(response.has_value());
  CHECK(response->status == 503);
  const ChatJson error = ChatJson::parse(response->body).at("error");
  CHECK(error.at("message") == "Loading model");
  CHECK(error.at("type") == "unavailable_error");
  CHECK(error.at("code") == 503);
  CHECK(std::any_of(response->headers.begin(), response->headers.end(),
                    [](const auto& header) { return header.first == "Retry-After"; }));
  CHECK(status_of(api, "POST /v1/chat/completions", "Host: a\r\nContent-Length: 2\r\n") == 503);
  CHECK(status_of(api, "GET /") == 200);
}

TEST_CASE("keys, hosts and origins are looked at before anything else") {
  Api api({.api_keys = {{"k"}}, .cors_origins = {}, .allowed_hosts = {"localhost"}});
  CHECK(status_of(api, "GET /metrics") == 401);
  CHECK(status_of(api, "GET /metrics", "Host: localhost\r\nAuthorization: bearer k\r\n") == 503);
  CHECK(status_of(api, "GET /nothing") == 401);
  CHECK(status_of(api, "GET /nothing", "Host: localhost\r\nX-Api-Key: k\r\n") == 404);
  CHECK(status_of(api, "PUT /metrics", "Host: localhost\r\nX-Api-Key: k\r\nContent-Length: 0\r\n") == 405);
  CHECK(status_of(api, "GET /", "Host: other\r\n") == 403);
  CHECK(status_of(api, "GET /", "Host: localhost:8080\r\nOrigin: http://localhost:8080\r\n") == 200);
  CHECK(status_of(api, "GET /", "Host: localhost:8080\r\nOrigin: http://localhost:9090\r\n") == 403);
  CHECK(status_of(api, "GET /", "Host: localhost\r\nOrigin: null\r\n") == 403);
}

TEST_CASE("errors have the body of the API that is asked") {
  Api api({.api_keys = {{"k"}}, .cors_origins = {}, .allowed_hosts = {}});
  const ChatJson open_ai =
      ChatJson::parse(admitted(api, "POST /v1/chat/completions", "Host: a\r\nContent-Length: 2\r\n")->body);
  CHECK(open_ai.at("error").at("type") == "authentication_error");
  CHECK(open_ai.at("error").at("code") == 401);
  const ChatJson anthropic =
      ChatJson::parse(admitted(api, "POST /v1/messages?beta=true", "Host: a\r\nContent-Length: 2\r\n")->body);
  CHECK(anthropic.at("type") == "error");
  CHECK(anthropic.at("error").at("type") == "authentication_error");
}
