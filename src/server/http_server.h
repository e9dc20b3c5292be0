// HTTP/1.1 over TCP: a thread for each connection, limits on everything a client can send. Knows nothing of JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_message.h"

namespace fathom {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  ///< all addresses of the name are listened on
  uint16_t port = 8080;            ///< 0: the system chooses
  HeadLimits head;
  uint64_t max_body_bytes = 4 << 20;
  uint64_t max_bodies_bytes = 256 << 20;          ///< of all requests in memory together; more: 503
  int max_connections = 512;                      ///< more: 503
  std::chrono::milliseconds head_timeout{10000};  ///< for a whole head once its first byte came, and for the first head
  std::chrono::milliseconds idle_timeout{30000};  ///< between two requests
  std::chrono::milliseconds body_timeout{15000};  ///< without a byte of the body
  std::chrono::milliseconds write_timeout{30000};  ///< a client that takes nothing for so long is dropped
};

/// Who asks, as far as the handler knows.
struct Caller {
  std::string key{};  ///< a name of the key that was given, not the key; empty: none was asked for
  int priority = 0;
};

/// One request and the way to answer it; for the handler's thread.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  virtual const Caller& caller() const = 0;
  /// Once, or begin_stream() and then write()s. False if the client is gone.
  virtual bool respond(const HttpResponse& response) = 0;
  virtual bool begin_stream(std::string_view content_type,
                            const std::vector<std::pair<std::string, std::string>>& headers) = 0;
  virtual bool write(std::string_view bytes) = 0;
  /// Whether the client went away; asked while nothing is written.
  virtual bool client_gone() = 0;
  /// A response or the head of a stream was sent.
  virtual bool answered() const = 0;
};

struct HttpHandler {
  /// Asked with the head before the body is read; a response refuses the request.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> admit;
  /// Answers. What it throws ends the connection; a BugError or bad_alloc is for it to handle.
  std::function<void(HttpExchange&)> handle;
  /// The body of a transport error: from the status and what was wrong.
  std::function<HttpResponse(int status, const std::string& message)> refuse;
  /// One line for each answered request; may be empty. From any thread.
  std::function<void(const HttpRequest& request, int status, double seconds)> log;
};

class HttpServer {
 public:
  /// Listens from here on. Throws Error{kUsage} for a host that is no address of this machine, Error{kRuntime} for a
  /// port that is in use or not allowed.
  HttpServer(HttpServerOptions options, HttpHandler handler);
  ~HttpServer();  ///< stop(0)
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  int connections() const;
  /// New limit for bodies, from the next request on.
  void set_max_body_bytes(uint64_t bytes);
  /// Takes no new connections and no further requests on old ones; running requests go on.
  void stop_accepting();
  /// stop_accepting(), waits for the running requests at most `patience`, then cuts them off. Blocks.
  void stop(std::chrono::milliseconds patience);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
