#include "server/http_server.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/printable.h"
#include "server/socket_stream.h"

namespace fathom {
namespace {

/// How long a refused client may go on sending before its connection is cut.
constexpr std::chrono::milliseconds kLinger{2000};

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::vector<FileDescriptor> listen_on(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); failed != 0) {
    throw Error(ErrorCode::kUsage, "--host: " + in_quotes(host) + " is no address (" + gai_strerror(failed) +
                                       "); expected one of this machine; try 127.0.0.1");
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  std::vector<FileDescriptor> sockets;
  int problem = 0;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    FileDescriptor fd(socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) {
      problem = errno;  // a machine without IPv6 still has 127.0.0.1 for localhost
      continue;
    }
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd.get(), a->ai_addr, a->ai_addrlen) != 0 || listen(fd.get(), 128) != 0) {
      problem = errno;
      if (problem == EADDRNOTAVAIL && a->ai_next != nullptr) continue;
      break;
    }
    sockets.push_back(std::move(fd));
    problem = 0;
    if (port == 0) break;  // two addresses would get two different ports
  }
  if (sockets.empty() || (problem != 0 && problem != EADDRNOTAVAIL && problem != EAFNOSUPPORT)) {
    const std::string where = "serve: cannot listen on " + host + ":" + std::to_string(port) + ": ";
    if (problem == EADDRINUSE)
      throw Error(ErrorCode::kRuntime,
                  where + "the port is in use; try another --port, or end the program that has it");
    throw Error(ErrorCode::kRuntime, where + std::strerror(problem) + "; try another --host or --port");
  }
  return sockets;
}

uint16_t port_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

class Exchange final : public HttpExchange {
 public:
  Exchange(SocketStream& socket, HttpRequest request, std::chrono::milliseconds write_timeout)
      : socket_(socket), request_(std::move(request)), write_timeout_(write_timeout) {}

  const HttpRequest& request() const override { return request_; }
  const Caller& caller() const override { return caller_; }
  HttpRequest& request() { return request_; }

  bool respond(const HttpResponse& response) override {
    FATHOM_CHECK(!answered_, "a second answer to one request");
    answered_ = true;
    status_ = response.status;
    std::string bytes = response_head(response.status, response.body.empty() ? "" : response.content_type,
                                      response.headers, response.body.size(), false, request_.keep_alive);
    if (request_.method != "HEAD") bytes += response.body;
    return socket_.write_all(bytes, write_timeout_);
  }

  bool begin_stream(std::string_view content_type,
                    const std::vector<std::pair<std::string, std::string>>& headers) override {
    FATHOM_CHECK(!answered_, "a second answer to one request");
    answered_ = streaming_ = true;
    status_ = 200;
    if (!request_.chunked_replies) request_.keep_alive = false;
    return socket_.write_all(
        response_head(200, content_type, headers, {}, request_.chunked_replies, request_.keep_alive), write_timeout_);
  }

  bool write(std::string_view bytes) override {
    FATHOM_CHECK(streaming_, "a piece of a stream that has not begun");
    if (bytes.empty()) return true;  // an empty chunk would end the stream
    if (!request_.chunked_replies) return socket_.write_all(bytes, write_timeout_);
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    return socket_.write_all(std::string(size).append(bytes).append("\r\n"), write_timeout_);
  }

  bool client_gone() override { return socket_.peer_gone(); }
  bool answered() const override { return answered_; }
  int status() const { return status_; }

  /// Ends a stream that was handled to its end.
  bool finish() { return !streaming_ || !request_.chunked_replies || socket_.write_all("0\r\n\r\n", write_timeout_); }

 private:
  SocketStream& socket_;
  HttpRequest request_;
  const Caller caller_;
  std::chrono::milliseconds write_timeout_;
  bool answered_ = false, streaming_ = false;
  int status_ = 0;
};

}  // namespace

struct HttpServer::Impl {
  HttpServerOptions options;
  HttpHandler handler;
  std::vector<FileDescriptor> listeners;
  FileDescriptor wake{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<bool> stopping{false};
  std::atomic<uint64_t> max_body_bytes, bodies_bytes{0};
  uint16_t port;
  std::thread acceptor;
  std::mutex mutex;
  std::condition_variable changed;
  struct Connection {
    explicit Connection(int fd) : socket(fd) {}
    SocketStream socket;
    bool busy = false;  // a request is being answered; under mutex
  };
  std::set<Connection*> open;  // under mutex
  int n_threads = 0;           // under mutex

  Impl(HttpServerOptions o, HttpHandler h)
      : options(std::move(o)),
        handler(std::move(h)),
        listeners(listen_on(options.host, options.port)),
        max_body_bytes(options.max_body_bytes),
        port(port_of(listeners.front().get())) {
    acceptor = std::thread([this] { accept_loop(); });
  }

  void accept_loop() {
    std::vector<pollfd> watched;
    for (const FileDescriptor& listener : listeners) watched.push_back({listener.get(), POLLIN, 0});
    watched.push_back({wake.get(), POLLIN, 0});
    while (!stopping) {
      if (poll(watched.data(), watched.size(), -1) < 0) continue;
      for (size_t i = 0; i + 1 < watched.size() && !stopping; ++i) {
        if ((watched[i].revents & POLLIN) == 0) continue;
        const int fd = accept4(watched[i].fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
          start_connection(fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the backlog keeps them until others are done
        }
      }
    }
  }

  void start_connection(int fd) {
    auto connection = std::make_unique<Connection>(fd);
    {
      const std::lock_guard lock(mutex);
      if (n_threads < options.max_connections) {
        ++n_threads;
        open.insert(connection.get());
        try {
          Connection* const raw = connection.get();
          std::thread([this, raw] { run_connection(std::unique_ptr<Connection>(raw)); }).detach();
          static_cast<void>(connection.release());
          return;
        } catch (const std::system_error&) {
          --n_threads;  // no thread to be had: the same as too many connections
          open.erase(connection.get());
        }
      }
    }
    HttpResponse busy = handler.refuse(503, "server: too many connections; try again later");
    busy.headers.emplace_back("Retry-After", "1");
    connection->socket.write_all(
        response_head(503, busy.content_type, busy.headers, busy.body.size(), false, false) + busy.body,
        std::chrono::milliseconds(0));
  }

  void run_connection(std::unique_ptr<Connection> connection) {
    try {
      serve(*connection);
    } catch (const std::exception&) {
      // The handler answers what can be answered; whatever is left ends this connection and no other.
    }
    const std::lock_guard lock(mutex);
    open.erase(connection.get());
    connection.reset();
    --n_threads;
    changed.notify_all();
  }

  void serve(Connection& connection) {
    std::string input;  // read ahead: the beginning of the next request
    for (bool first = true; !stopping; first = false) {
      std::optional<HttpRequest> request;
      try {
        request = read_head(connection.socket, input, first);
      } catch (const HttpRefusal& refusal) {
        return refuse(connection.socket, HttpRequest(), handler.refuse(refusal.status(), refusal.what()));
      }
      if (!request) return;
      if (!set_busy(connection, true)) return;
      const bool go_on = answer(connection.socket, std::move(*request), input);
      set_busy(connection, false);
      if (!go_on) return;
    }
  }

  /// False if the server stops: a connection between two requests is not to begin another.
  bool set_busy(Connection& connection, bool busy) {
    const std::lock_guard lock(mutex);
    connection.busy = busy;
    return !(busy && stopping);
  }

  std::optional<HttpRequest> read_head(SocketStream& socket, std::string& input, bool first) {
    SteadyClock::time_point deadline =
        SteadyClock::now() + (first || !input.empty() ? options.head_timeout : options.idle_timeout);
    bool begun = first || !input.empty();
    for (;;) {
      if (const std::optional<size_t> length = find_head(input, options.head)) {
        HttpRequest request = parse_head(std::string_view(input).substr(0, *length), options.head);
        input.erase(0, *length);
        return request;
      }
      switch (socket.read_some(input, SIZE_MAX, deadline)) {
        case SocketStream::ReadResult::kData:
          if (!std::exchange(begun, true)) deadline = SteadyClock::now() + options.head_timeout;
          break;
        case SocketStream::ReadResult::kClosed: return {};
        case SocketStream::ReadResult::kTimeout:
          if (input.empty()) return {};
          throw HttpRefusal(408, "request: its head did not arrive in time");
      }
    }
  }

  /// Whether the connection can take another request.
  bool answer(SocketStream& socket, HttpRequest head, std::string& input) {
    const SteadyClock::time_point start = SteadyClock::now();
    const auto refuse_and_close = [&](HttpResponse response) {
      refuse(socket, head, std::move(response), start);
      return false;
    };
    const uint64_t length = head.content_length.value_or(0);
    if (std::optional<HttpResponse> refused = handler.admit(head)) {
      if (length > 0) return refuse_and_close(std::move(*refused));
      Exchange exchange(socket, std::move(head), options.write_timeout);
      const bool sent = exchange.respond(*refused);
      log(exchange.request(), exchange.status(), start);
      return sent && exchange.request().keep_alive;
    }
    const uint64_t limit = max_body_bytes;
    if (length > limit)
      return refuse_and_close(handler.refuse(
          413, "body: too large; expected at most " + std::to_string(limit) + " bytes, got " + std::to_string(length)));
    const BodyShare share(*this, length);
    if (!share.granted()) {
      HttpResponse busy = handler.refuse(503, "server: too many large requests at once; try again later");
      busy.headers.emplace_back("Retry-After", "1");
      return refuse_and_close(std::move(busy));
    }
    if (head.expects_continue && input.size() < length &&
        !socket.write_all("HTTP/1.1 100 Continue\r\n\r\n", options.write_timeout))
      return false;
    while (input.size() < length) {
      switch (socket.read_some(input, static_cast<size_t>(length) - input.size(),
                               SteadyClock::now() + options.body_timeout)) {
        case SocketStream::ReadResult::kData: break;
        case SocketStream::ReadResult::kClosed: return false;
        case SocketStream::ReadResult::kTimeout:
          return refuse_and_close(handler.refuse(408, "body: it did not arrive in time; expected " +
                                                          std::to_string(length) + " bytes, got " +
                                                          std::to_string(input.size())));
      }
    }
    head.body = input.substr(0, static_cast<size_t>(length));
    input.erase(0, static_cast<size_t>(length));
    if (stopping) head.keep_alive = false;
    Exchange exchange(socket, std::move(head), options.write_timeout);
    handler.handle(exchange);
    const bool ended = exchange.finish();
    log(exchange.request(), exchange.status(), start);
    return ended && exchange.answered() && exchange.request().keep_alive && !socket.peer_gone();
  }

  void refuse(SocketStream& socket, const HttpRequest& request, HttpResponse response,
              SteadyClock::time_point start = SteadyClock::now()) {
    const std::string head =
        response_head(response.status, response.content_type, response.headers, response.body.size(), false, false);
    socket.write_all(head + (request.method == "HEAD" ? "" : response.body), options.write_timeout);
    log(request, response.status, start);
    socket.finish_politely(kLinger);
  }

  void log(const HttpRequest& request, int status, SteadyClock::time_point start) {
    if (handler.log) handler.log(request, status, std::chrono::duration<double>(SteadyClock::now() - start).count());
  }

  /// The part of max_bodies_bytes that a request holds while it is answered.
  class BodyShare {
   public:
    BodyShare(Impl& impl, uint64_t bytes)
        : impl_(impl),
          bytes_(bytes),
          granted_(impl.bodies_bytes.fetch_add(bytes) + bytes <= impl.options.max_bodies_bytes) {}
    ~BodyShare() { impl_.bodies_bytes -= bytes_; }
    BodyShare(const BodyShare&) = delete;
    BodyShare& operator=(const BodyShare&) = delete;
    bool granted() const { return granted_; }

   private:
    Impl& impl_;
    uint64_t bytes_;
    bool granted_;
  };

  void stop_accepting() {
    if (!stopping.exchange(true)) {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = write(wake.get(), &one, sizeof one);
      acceptor.join();
      listeners.clear();
    }
    const std::lock_guard lock(mutex);
    for (Connection* connection : open) {
      if (!connection->busy) connection->socket.shut_down();
    }
  }

  void stop(std::chrono::milliseconds patience) {
    stop_accepting();
    std::unique_lock lock(mutex);
    const auto all_gone = [&] { return n_threads == 0; };
    if (changed.wait_for(lock, patience, all_gone)) return;
    for (Connection* connection : open) connection->socket.shut_down();
    changed.wait(lock, all_gone);
  }
};

HttpServer::HttpServer(HttpServerOptions options, HttpHandler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {}
HttpServer::~HttpServer() { stop(std::chrono::milliseconds(0)); }
uint16_t HttpServer::port() const { return impl_->port; }
int HttpServer::connections() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->n_threads;
}
void HttpServer::set_max_body_bytes(uint64_t bytes) { impl_->max_body_bytes = bytes; }
void HttpServer::stop_accepting() { impl_->stop_accepting(); }
void HttpServer::stop(std::chrono::milliseconds patience) { impl_->stop(patience); }

}  // namespace fathom
