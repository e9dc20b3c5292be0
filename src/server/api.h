// The routes: who may ask, what for, and in whose words errors are told.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "server/endpoint.h"
#include "server/http_server.h"
#include "server/service.h"

namespace fathom {

/// Requests with one key share the engine as one user; those of higher priority go first.
struct ApiKey {
  std::string secret;
  int priority = 0;
};

struct ApiOptions {
  std::vector<ApiKey> api_keys;           ///< empty: no key is asked for
  std::vector<std::string> cors_origins;  ///< whole origins, or "*"; empty: no page of another origin may ask
  /// Names a request's Host may have; empty: any. On loopback this keeps out pages that point their own name here.
  std::vector<std::string> allowed_hosts;
};

/// Stands between HttpServer and the endpoints. Before attach() only /health and the page answer. Thread-safe.
class Api {
 public:
  explicit Api(ApiOptions options) : options_(std::move(options)) {}

  /// `service` must outlive every request.
  void attach(Service& service) { service_.store(&service); }
  /// What HttpServer calls; refers to this object.
  HttpHandler handler();

 private:
  std::optional<HttpResponse> admit(const HttpRequest& request) const;
  void handle(HttpExchange& exchange) const;
  bool has_key(const HttpRequest& request) const { return find_key(request) != nullptr; }
  const ApiKey* find_key(const HttpRequest& request) const;
  Caller caller(const HttpRequest& request) const;
  bool is_known_host(const HttpRequest& request) const;
  bool may_ask_from_origin(const HttpRequest& request) const;
  void add_cors(const HttpRequest& request, std::vector<std::pair<std::string, std::string>>& headers) const;
  HttpResponse refusal(const HttpRequest& request, const ApiError& error) const;

  const ApiOptions options_;
  std::atomic<Service*> service_{nullptr};
};

/// Whether a is b, in time that depends on their lengths only.
bool same_secret(std::string_view a, std::string_view b);

/// The name in a Host header, without port and brackets, in lower case.
std::string host_name(std::string_view host);

}  // namespace fathom
