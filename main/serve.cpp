// fathom serve: the model over HTTP.
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <memory>

#include "core/error.h"
#include "core/printable.h"
#include "engine/scheduler.h"
#include "main/answer.h"
#include "main/commands.h"
#include "main/input.h"
#include "main/options.h"
#include "main/signals.h"
#include "server/api.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  SamplingFlags sampling;
  std::string host = "127.0.0.1", alias, key_file, cache_dir;
  uint16_t port = 8080;
  std::vector<std::string> keys, cors_origins, allowed_hosts;
  bool no_auth = false;
  int parallel = 8, queue = 64;
  int64_t drain_s = 30, keep_alive_s = 5, cache_mib = 8192, max_stall_ms = 250;
};

/// A day: nobody waits longer, and no clock overflows.
constexpr int64_t kLongestSeconds = 86'400;

int stop_event = -1;  // counts signals; written by their handler
std::atomic<int> n_signals{0};

/// Only async-signal-safe calls.
void on_stop_signal(int signal_number) {
  if (n_signals.fetch_add(1) > 0) _exit(128 + signal_number);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_event, &one, sizeof one);
}

/// The first signal ends wait_for_stop(), a second one the program.
void catch_stop_signals() {
  stop_event = eventfd(0, EFD_CLOEXEC);
  if (stop_event < 0) throw Error(ErrorCode::kRuntime, "serve: no file descriptor left; try a higher ulimit -n");
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

void wait_for_stop() {
  pollfd watched{stop_event, POLLIN, 0};
  while (poll(&watched, 1, -1) <= 0) {
  }
}

bool is_loopback(const std::string& host) { return host == "localhost" || host == "::1" || host.starts_with("127."); }

/// "KEY" or "KEY PRIORITY".
ApiKey read_key_line(const std::string& line, const std::string& file) {
  const size_t end = std::min(line.find(' '), line.size());
  ApiKey key{line.substr(0, end)};
  const std::string priority = line.substr(std::min(line.find_first_not_of(' ', end), line.size()));
  if (priority.empty()) return key;
  const auto [stopped, error] = std::from_chars(priority.data(), priority.data() + priority.size(), key.priority);
  if (error != std::errc{} || stopped != priority.data() + priority.size() || std::abs(key.priority) > kMaxPriority) {
    throw Error(ErrorCode::kUsage, "--api-key-file: a line of " + in_quotes(file) +
                                       " has something else behind its key; expected a priority from -" +
                                       std::to_string(kMaxPriority) + " to " + std::to_string(kMaxPriority) + ", got " +
                                       in_quotes(priority));
  }
  return key;
}

std::vector<ApiKey> read_keys(const Options& options) {
  std::vector<ApiKey> keys;
  for (const std::string& key : options.keys) keys.push_back({key});
  if (!options.key_file.empty()) {
    std::string text = read_input(options.key_file, "--api-key-file");
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      std::string line = text.substr(begin, end - begin);
      if (line.ends_with('\r')) line.pop_back();
      if (!line.empty()) keys.push_back(read_key_line(line, options.key_file));
      begin = end + 1;
    }
    if (keys.empty())
      throw Error(ErrorCode::kUsage,
                  "--api-key-file: no key in " + in_quotes(options.key_file) + "; expected one a line");
  }
  for (const auto& [key, priority] : keys) {
    if (key.empty() || std::any_of(key.begin(), key.end(), [](unsigned char c) { return c <= 0x20 || c >= 0x7f; })) {
      throw Error(ErrorCode::kUsage, "--api-key: expected printable ASCII without spaces, got something else");
    }
  }
  return keys;
}

ApiOptions api_options(const Options& options) {
  ApiOptions api;
  api.api_keys = read_keys(options);
  api.cors_origins = options.cors_origins;
  if (!is_loopback(options.host) && api.api_keys.empty() && !options.no_auth) {
    throw Error(ErrorCode::kUsage, "serve: " + in_quotes(options.host) +
                                       " can be reached from other machines, and there is no key; expected --api-key "
                                       "KEY, or --no-auth if everybody may ask");
  }
  if (is_loopback(options.host) || !options.allowed_hosts.empty()) {
    api.allowed_hosts = {"localhost", "127.0.0.1", "::1", options.host};
    api.allowed_hosts.insert(api.allowed_hosts.end(), options.allowed_hosts.begin(), options.allowed_hosts.end());
  }
  return api;
}

/// What clients see: the alias, else the model's own name, else its file's, without what would need escaping in a path.
std::string model_name(const Options& options, const Engine& engine) {
  std::string name = options.alias;
  if (name.empty()) name = engine.info().name;
  if (name.empty()) name = engine.info().path.substr(engine.info().path.rfind('/') + 1);
  for (char& c : name) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("-_.:").find(c) != std::string_view::npos;
    if (!plain) c = '-';
  }
  return name.empty() ? "fathom" : name.substr(0, 128);
}

std::string url_of(const std::string& host, uint16_t port) {
  return "http://" + (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

int serve(const Options& options) {
  const Console console = options.common.console();
  options.sampling.check();
  Api api(api_options(options));
  HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.max_connections = std::max(512, 2 * (options.parallel + options.queue) + 64);
  HttpHandler handler = api.handler();
  handler.log = [&console](const HttpRequest& request, int status, double seconds) {
    console.debug("serve: " + printable(request.method, 40) + " " + printable(request.path) + " " +
                  std::to_string(status) + " " + fixed(seconds * 1000, 1) + " ms");
  };
  // The port is taken first: health checks are answered, and a port in use is told, before the model is loaded.
  HttpServer server(http, handler);
  const std::unique_ptr<Engine> engine = load_engine(options.model, options.engine, options.common, console);
  if (interrupted()) throw Error(ErrorCode::kInterrupted, "serve: interrupted");

  SchedulerOptions limits;
  limits.draft = options.engine.draft_mode();
  limits.max_running = options.parallel;
  limits.max_queued = options.queue;
  limits.max_stall = std::chrono::milliseconds(options.max_stall_ms);
  if (!options.cache_dir.empty()) {
    limits.disk.emplace();
    limits.disk->folder = options.cache_dir;
    limits.disk->max_bytes = static_cast<uint64_t>(options.cache_mib) << 20;
    // A full disk fails every save: one line for each new trouble is enough.
    limits.on_disk_problem = [&console, last = std::string()](const std::string& problem) mutable {
      if (problem != last) console.warn("cache folder: " + problem);
      last = problem;
    };
  }
  Scheduler scheduler(*engine, limits);
  ServiceOptions settings;
  settings.model_name = model_name(options, *engine);
  settings.sampling = options.sampling.params(*engine, options.common.seed);
  settings.fingerprint = system_fingerprint(*engine, options.engine);
  settings.max_choices = options.parallel;
  settings.keep_alive = std::chrono::seconds(options.keep_alive_s);
  Service service(*engine, scheduler, settings);
  // A token is a few bytes of text, more in JSON with its escapes; the rest is for tools and schemas.
  server.set_max_body_bytes((uint64_t{4} << 20) + 16 * static_cast<uint64_t>(engine->context()));
  // Requests hold on to service and scheduler: however this function is left, they end first.
  struct StopFirst {
    HttpServer& server;
    ~StopFirst() { server.stop(std::chrono::milliseconds(0)); }
  } const stop_first{server};
  api.attach(service);
  catch_stop_signals();
  console.note("serving " + settings.model_name + " at " + url_of(options.host, server.port()) + ", context " +
               std::to_string(engine->context()) + ", " + std::to_string(options.parallel) + " answers at once" +
               (options.keys.empty() && options.key_file.empty() ? "" : ", API key required"));
  wait_for_stop();
  console.note("stopping: answers in progress have " + std::to_string(options.drain_s) +
               " s; a second signal ends at once");
  server.stop_accepting();
  scheduler.shutdown(std::chrono::seconds(options.drain_s));
  constexpr std::chrono::seconds kLastBytes{2};  // for the ends of answers that are on their way
  server.stop(kLastBytes);
  return 0;
}

}  // namespace

Command add_serve(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app =
      root.add_subcommand("serve", "Answer over HTTP: the OpenAI and Anthropic APIs, and a page for a browser");
  o.model.declare(*app);
  app->add_option("--host", o.host, "Address to listen on (default: 127.0.0.1, this machine only)")
      ->type_name("ADDRESS");
  app->add_option("--port", o.port, "Port; 0: any free one (default: 8080)")
      ->check(in_range(0, std::numeric_limits<uint16_t>::max()))
      ->type_name("N");
  app->add_option("--api-key", o.keys, "Ask for this key; repeatable. Needed to listen on other addresses")
      ->type_name("KEY")
      ->allow_extra_args(false);
  app->add_option("--api-key-file", o.key_file,
                  "Keys, one a line, each with a priority behind it if you like: higher goes first (default: 0)")
      ->type_name("FILE");
  app->add_flag("--no-auth", o.no_auth, "Listen on other addresses without a key");
  app->add_option("--parallel", o.parallel, "Answers at once (default: 8)")
      ->check(in_range(1, kMaxRunning))
      ->type_name("N");
  app->add_option("--queue", o.queue, "Requests that may wait; more are refused with 429 (default: 64)")
      ->check(in_range(0, 1'000'000))
      ->type_name("N");
  app->add_option("--max-stall", o.max_stall_ms,
                  "Milliseconds that running answers wait for their next token while prompts are evaluated, about "
                  "(default: 250)")
      ->check(in_range(0, kLongestSeconds * 1000))
      ->type_name("MS");
  app->add_option("--alias", o.alias, "The model's name for clients (default: its own)")->type_name("NAME");
  app->add_option("--allow-host", o.allowed_hosts, "Further name that requests may address this server by; repeatable")
      ->type_name("NAME")
      ->allow_extra_args(false);
  app->add_option("--cors-origin", o.cors_origins,
                  "Let pages of this origin ask, * for all; repeatable (default: none)")
      ->type_name("ORIGIN")
      ->allow_extra_args(false);
  app->add_option("--cache-dir", o.cache_dir, "Keep evaluated texts in this folder between runs (default: off)")
      ->type_name("DIR");
  app->add_option("--cache-size", o.cache_mib,
                  "MiB that this folder may take; the least recently used texts go (default: 8192)")
      ->check(in_range(1, int64_t{1} << 40))
      ->type_name("MIB");
  app->add_option("--drain", o.drain_s, "Seconds that running answers get after SIGTERM (default: 30)")
      ->check(in_range(0, kLongestSeconds))
      ->type_name("S");
  app->add_option("--keep-alive", o.keep_alive_s, "Seconds of silence before a comment in a stream (default: 5)")
      ->check(in_range(1, kLongestSeconds))
      ->type_name("S");
  o.sampling.declare(*app);
  o.engine.declare(*app);
  o.engine.declare_answering(*app);
  o.common.declare(*app);
  return {app, [options] { return serve(*options); }};
}

}  // namespace fathom
