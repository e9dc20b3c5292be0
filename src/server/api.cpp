#include "server/api.h"

#include <algorithm>
#include <array>

#include "server/page.h"

namespace fathom {
namespace {

enum class Access { kOpen, kKey };

struct Route {
  std::string_view method;
  std::string_view path;  ///< one that ends with '/' stands for everything below it
  Access access;
  Endpoint endpoint;
};

void show_page(Service&, HttpExchange& exchange) { exchange.respond(page_response()); }
void say_healthy(Service&, HttpExchange& exchange) { respond_json(exchange, {{"status", "ok"}}); }

constexpr std::array kRoutes = {
    Route{"GET", "/", Access::kOpen, show_page},
    Route{"GET", "/health", Access::kOpen, say_healthy},
    Route{"GET", "/v1/health", Access::kOpen, say_healthy},
    Route{"GET", "/v1/models", Access::kOpen, list_models},
    Route{"GET", "/models", Access::kOpen, list_models},
    Route{"GET", "/v1/models/", Access::kOpen, describe_model},
    Route{"POST", "/v1/chat/completions", Access::kKey, chat_completions},
    Route{"POST", "/chat/completions", Access::kKey, chat_completions},
    Route{"POST", "/v1/completions", Access::kKey, completions},
    Route{"POST", "/v1/responses", Access::kKey, responses},
    Route{"POST", "/v1/messages", Access::kKey, anthropic_messages},
    Route{"POST", "/v1/messages/count_tokens", Access::kKey, anthropic_count_tokens},
    Route{"POST", "/tokenize", Access::kKey, tokenize},
    Route{"POST", "/detokenize", Access::kKey, detokenize},
    Route{"POST", "/apply-template", Access::kKey, apply_template},
    Route{"GET", "/props", Access::kKey, props},
    Route{"GET", "/metrics", Access::kKey, metrics},
};

bool matches(const Route& route, std::string_view path) {
  if (route.path.size() > 1 && route.path.ends_with('/'))
    return path.starts_with(route.path) && path.size() > route.path.size();
  return path == route.path;
}

bool same_method(std::string_view of_route, std::string_view of_request) {
  return of_route == of_request || (of_route == "GET" && of_request == "HEAD");
}

const Route* find_route(const HttpRequest& request) {
  for (const Route& route : kRoutes) {
    if (matches(route, request.path) && same_method(route.method, request.method)) return &route;
  }
  return nullptr;
}

ApiStyle style_of(const HttpRequest& request) {
  return request.path.starts_with("/v1/messages") || !request.header("anthropic-version").empty() ? ApiStyle::kAnthropic
                                                                                                  : ApiStyle::kOpenAi;
}

/// 404, or 405 with the methods that the path has.
HttpResponse no_route(const HttpRequest& request) {
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (matches(route, request.path)) allowed.append(allowed.empty() ? "" : ", ").append(route.method);
  }
  if (allowed.empty())
    return error_response(ApiError(404, "path: not found; see the documentation for the endpoints"), style_of(request));
  HttpResponse response =
      error_response(ApiError(405, "method: not possible here; expected " + allowed), style_of(request));
  response.headers.emplace_back("Allow", allowed);
  return response;
}

}  // namespace

bool same_secret(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  return difference == 0;
}

std::string host_name(std::string_view host) {
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') == std::string_view::npos ? std::string_view::npos : host.find(']') - 1);
  } else if (host.find(':') == host.rfind(':')) {
    host = host.substr(0, host.find(':'));
  }
  std::string name(host);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (name.ends_with('.')) name.pop_back();
  return name;
}

HttpHandler Api::handler() {
  HttpHandler handler;
  handler.admit = [this](const HttpRequest& request) { return admit(request); };
  handler.handle = [this](HttpExchange& exchange) { handle(exchange); };
  handler.refuse = [](int status, const std::string& message) {
    return error_response(ApiError(status, message), ApiStyle::kOpenAi);
  };
  return handler;
}

const ApiKey* Api::find_key(const HttpRequest& request) const {
  std::string_view given = request.header("authorization");
  constexpr std::string_view kScheme = "bearer ";
  const bool is_bearer = given.size() >= kScheme.size() &&
                         std::equal(kScheme.begin(), kScheme.end(), given.begin(),
                                    [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
  given = is_bearer ? given.substr(kScheme.size()) : request.header("x-api-key");
  const ApiKey* found = nullptr;
  for (const ApiKey& key : options_.api_keys) {
    if (same_secret(given, key.secret)) found = &key;
  }
  return found;
}

Caller Api::caller(const HttpRequest& request) const {
  const ApiKey* key = find_key(request);
  if (key == nullptr) return {};
  return {"key " + std::to_string(key - options_.api_keys.data()), key->priority};
}

bool Api::is_known_host(const HttpRequest& request) const {
  if (options_.allowed_hosts.empty()) return true;
  const std::string name = host_name(request.header("host"));
  return std::any_of(options_.allowed_hosts.begin(), options_.allowed_hosts.end(),
                     [&](const std::string& allowed) { return host_name(allowed) == name; });
}

bool Api::may_ask_from_origin(const HttpRequest& request) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty()) return true;
  for (const std::string& allowed : options_.cors_origins) {
    if (allowed == "*" || allowed == origin) return true;
  }
  const size_t scheme = origin.find("://");
  return scheme != std::string_view::npos && origin.substr(scheme + 3) == request.header("host");
}

void Api::add_cors(const HttpRequest& request, std::vector<std::pair<std::string, std::string>>& headers) const {
  const std::string_view origin = request.header("origin");
  if (options_.cors_origins.empty() || origin.empty() || !may_ask_from_origin(request)) return;
  headers.emplace_back("Access-Control-Allow-Origin", origin);  // never with credentials: keys come in headers
  headers.emplace_back("Vary", "Origin");
}

HttpResponse Api::refusal(const HttpRequest& request, const ApiError& error) const {
  HttpResponse response = error_response(error, style_of(request));
  add_cors(request, response.headers);
  return response;
}

std::optional<HttpResponse> Api::admit(const HttpRequest& request) const {
  if (!is_known_host(request))
    return refusal(request, ApiError(403, "host: not served here; try --allow-host NAME if the name is yours"));
  if (!may_ask_from_origin(request))
    return refusal(request,
                   ApiError(403, "origin: pages from elsewhere may not ask; try --cors-origin ORIGIN to allow it"));
  if (request.method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    add_cors(request, response.headers);
    if (!response.headers.empty()) {
      response.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
      response.headers.emplace_back("Access-Control-Allow-Headers",
                                    "Authorization, Content-Type, X-Api-Key, Anthropic-Version, Anthropic-Beta");
      response.headers.emplace_back("Access-Control-Max-Age", "600");
    }
    return response;
  }
  const Route* route = find_route(request);
  if (route == nullptr) {
    // Without a key nobody learns what there is.
    if (!options_.api_keys.empty() && !has_key(request))
      return refusal(request,
                     ApiError(401, "api key: missing or wrong; expected Authorization: Bearer KEY or X-Api-Key: KEY"));
    return no_route(request);
  }
  if (route->access == Access::kKey && !options_.api_keys.empty() && !has_key(request)) {
    return refusal(request,
                   ApiError(401, "api key: missing or wrong; expected Authorization: Bearer KEY or X-Api-Key: KEY"));
  }
  if (service_.load() == nullptr && route->endpoint != show_page) {
    ApiError loading(503, "Loading model");
    loading.type = "unavailable_error";
    loading.retry_after_s = 5;
    return refusal(request, loading);
  }
  return {};
}

namespace {

/// Knows who asks, and adds headers to whatever is answered.
class KnownExchange final : public HttpExchange {
 public:
  KnownExchange(HttpExchange& inner, Caller caller, std::vector<std::pair<std::string, std::string>> headers)
      : inner_(inner), caller_(std::move(caller)), headers_(std::move(headers)) {}
  const Caller& caller() const override { return caller_; }
  const HttpRequest& request() const override { return inner_.request(); }
  bool respond(const HttpResponse& response) override {
    HttpResponse full = response;
    full.headers.insert(full.headers.end(), headers_.begin(), headers_.end());
    return inner_.respond(full);
  }
  bool begin_stream(std::string_view content_type,
                    const std::vector<std::pair<std::string, std::string>>& headers) override {
    std::vector<std::pair<std::string, std::string>> all = headers;
    all.insert(all.end(), headers_.begin(), headers_.end());
    return inner_.begin_stream(content_type, all);
  }
  bool write(std::string_view bytes) override { return inner_.write(bytes); }
  bool client_gone() override { return inner_.client_gone(); }
  bool answered() const override { return inner_.answered(); }

 private:
  HttpExchange& inner_;
  const Caller caller_;
  const std::vector<std::pair<std::string, std::string>> headers_;
};

}  // namespace

void Api::handle(HttpExchange& exchange) const {
  std::vector<std::pair<std::string, std::string>> headers;
  add_cors(exchange.request(), headers);
  KnownExchange answering(exchange, caller(exchange.request()), std::move(headers));
  const Route* route = find_route(exchange.request());  // admit() found one
  try {
    if (route->endpoint == show_page) {
      exchange.respond(page_response());
    } else {
      route->endpoint(*service_.load(), answering);
    }
  } catch (...) {
    const ApiError error = current_error();
    if (!exchange.answered()) answering.respond(error_response(error, style_of(exchange.request())));
  }
}

}  // namespace fathom
