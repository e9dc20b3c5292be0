// Batched serving: tokens a second of 1, 2, 4 .. sequences together (-s, -n tokens each), seconds to the first token of
// prompts (-p), and what long prompts do to the answers beside them (-l). -e: all sequences say the same, so that they
// share all their experts. bench_scheduler -s 16 -p 2048 -p 8192 -l 8192 MODEL
//
// Seconds of processor time are shown too: on a machine that is busy with other things they say more than the clock
// (with one thread: several wait for each other actively).
#include <getopt.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <thread>

#include "engine/scheduler.h"

using namespace fathom;
using Clock = std::chrono::steady_clock;

namespace {

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Request random_request(const Engine& engine, int64_t n_prompt, int64_t n_tokens, uint32_t seed) {
  std::mt19937 random(seed);
  Request r;
  for (int64_t i = 0; i < n_prompt; ++i)
    r.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(engine.tokenizer().vocab().size())));
  r.options.max_tokens = n_tokens;
  r.options.ignore_eos = true;
  r.options.sampling.temperature = 0;
  return r;
}

/// Times of an answer's tokens; fails loudly.
std::vector<Clock::time_point> token_times(RequestHandle& handle) {
  std::vector<Clock::time_point> times;
  while (!handle.done()) {
    const std::optional<Event> event = handle.next(std::chrono::seconds(60));
    if (!event) continue;
    if (std::holds_alternative<TokenEvent>(*event)) times.push_back(Clock::now());
    if (const auto* failed = std::get_if<FailedEvent>(&*event)) throw failed->error;
  }
  return times;
}

RequestHandle must_submit(Scheduler& scheduler, Request request) {
  return std::get<RequestHandle>(scheduler.submit(std::move(request)));
}

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

struct Rates {
  double tok_s, tok_cpu_s;
};

/// Of n answers together, while all of them run: after the slowest's first token, and until the first ends.
Rates aggregate(Scheduler& scheduler, const Engine& engine, int n, int64_t n_tokens, bool equal = false) {
  std::vector<RequestHandle> handles;
  for (int i = 0; i < n; ++i)
    handles.push_back(
        must_submit(scheduler, random_request(engine, 16, n_tokens, equal ? 0 : static_cast<uint32_t>(i))));
  std::vector<std::vector<Clock::time_point>> times(handles.size());
  const double cpu_before = cpu_seconds();
  const Clock::time_point wall_before = Clock::now();
  std::vector<std::thread> readers;
  for (size_t i = 0; i < handles.size(); ++i) readers.emplace_back([&, i] { times[i] = token_times(handles[i]); });
  for (std::thread& reader : readers) reader.join();
  Clock::time_point begin{}, end = Clock::time_point::max();
  for (const auto& t : times) begin = std::max(begin, t.front()), end = std::min(end, t.back());
  size_t tokens = 0;
  for (const auto& t : times)
    tokens += static_cast<size_t>(
        std::count_if(t.begin(), t.end(), [&](Clock::time_point at) { return at > begin && at <= end; }));
  const double rate = static_cast<double>(tokens) / std::chrono::duration<double>(end - begin).count();
  // Processor time is known for the whole only; it is shared out by the clock.
  return {rate, rate * seconds_since(wall_before) / (cpu_seconds() - cpu_before)};
}

/// Seconds to the first token.
double first_token_s(Scheduler& scheduler, const Request& request) {
  const Clock::time_point start = Clock::now();
  RequestHandle handle = must_submit(scheduler, request);
  return std::chrono::duration<double>(token_times(handle).front() - start).count();
}

/// A prompt nobody knows, and one that goes on behind it.
void measure_prompt(Scheduler& scheduler, const Engine& engine, int64_t n_prompt) {
  Request request = random_request(engine, n_prompt, 1, 300);
  const double cold = first_token_s(scheduler, request);
  const Request more = random_request(engine, 64, 1, 301);
  request.prompt.insert(request.prompt.end(), more.prompt.begin(), more.prompt.end());
  const SchedulerStats before = scheduler.stats();
  const double warm = first_token_s(scheduler, request);
  std::printf(
      "prompt of %lld tokens: first token after %.2f s; with 64 more and the rest cached (%lld of %lld tokens found) "
      "after %.2f s\n",
      static_cast<long long>(n_prompt), cold,
      static_cast<long long>(scheduler.stats().cached_tokens_total - before.cached_tokens_total),
      static_cast<long long>(n_prompt + 64), warm);
  std::fflush(stdout);
}

/// Answers while a long prompt is evaluated: their longest wait for a token, and what the prompt waits for them.
void measure_stall(Scheduler& scheduler, const Engine& engine, int64_t n_prompt, int n_answers, int64_t max_stall_ms) {
  std::vector<RequestHandle> talking;
  for (int i = 0; i < n_answers; ++i)
    talking.push_back(must_submit(scheduler, random_request(engine, 16, 100000, static_cast<uint32_t>(400 + i))));
  for (RequestHandle& handle : talking) {
    while (!std::holds_alternative<TokenEvent>(*handle.next(std::chrono::seconds(60)))) {
    }
  }
  const double before_s = scheduler.stats().between_tokens_seconds.sum;
  const uint64_t before_n = scheduler.stats().between_tokens_seconds.total();
  std::vector<double> gaps;
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    Clock::time_point last = Clock::now();
    while (!stop) {
      const std::optional<Event> event = talking.front().next(std::chrono::milliseconds(20));
      if (!event || !std::holds_alternative<TokenEvent>(*event)) continue;
      gaps.push_back(seconds_since(last));
      last = Clock::now();
    }
  });
  std::vector<std::thread> others;
  for (size_t i = 1; i < talking.size(); ++i) {
    others.emplace_back([&, i] {
      while (!stop) talking[i].next(std::chrono::milliseconds(20));
    });
  }
  const double first =
      first_token_s(scheduler, random_request(engine, n_prompt, 1, static_cast<uint32_t>(500 + n_answers)));
  stop = true;
  reader.join();
  for (std::thread& other : others) other.join();
  std::sort(gaps.begin(), gaps.end());
  const SchedulerStats after = scheduler.stats();
  const double mean = (after.between_tokens_seconds.sum - before_s) /
                      static_cast<double>(std::max<uint64_t>(1, after.between_tokens_seconds.total() - before_n));
  std::printf(
      "prompt of %lld tokens beside %d answers: first token after %.2f s; the answers wait %.0f ms for a token on "
      "average, %.0f at the 99th percentile, %.0f at most (asked for %lld)\n",
      static_cast<long long>(n_prompt), n_answers, first, mean * 1000, gaps[gaps.size() * 99 / 100] * 1000,
      gaps.back() * 1000, static_cast<long long>(max_stall_ms));
  std::fflush(stdout);
  for (RequestHandle& handle : talking) handle.cancel();
}

}  // namespace

int main(int argc, char** argv) {
  int most = 8;
  bool equal = false;
  int64_t n_tokens = 32;
  std::vector<int64_t> prompts, stalls;
  EngineOptions options;
  for (int option; (option = getopt(argc, argv, "s:n:p:l:t:e")) != -1;) {
    switch (option) {
      case 's': most = std::atoi(optarg); break;
      case 'n': n_tokens = std::atoll(optarg); break;
      case 'p': prompts.push_back(std::atoll(optarg)); break;
      case 'l': stalls.push_back(std::atoll(optarg)); break;
      case 'e': equal = true; break;
      case 't': options.n_threads = std::atoi(optarg); break;
      default: optind = argc;
    }
  }
  if (optind + 1 != argc) {
    std::fprintf(stderr,
                 "usage: bench_scheduler [-s MOST_SEQUENCES] [-n TOKENS_EACH] [-e] [-p PROMPT_TOKENS]... [-l "
                 "PROMPT_TOKENS_BESIDE_ANSWERS]... [-t THREADS] MODEL\n");
    return 2;
  }
  options.model_path = argv[optind];
  options.context = (64 + n_tokens) * 2 * std::max(most, 1);
  for (const int64_t n : prompts) options.context = std::max(*options.context, n + 256);
  for (const int64_t n : stalls) options.context = std::max(*options.context, n + 3000);
  const auto engine = Engine::load(options);
  std::printf("%s, %s\n", engine->info().type.c_str(), engine->backend_description().c_str());
  SchedulerOptions scheduling;
  scheduling.max_running = std::max(most, 9);
  scheduling.event_buffer = 100000;
  Scheduler scheduler(*engine, scheduling);
  aggregate(scheduler, *engine, 1, 4);
  Rates one{};
  for (int n = 1; n <= most; n *= 2) {
    const Rates rate = aggregate(scheduler, *engine, n, n_tokens, equal);
    if (n == 1) one = rate;
    // What reading each weight once a step allows where experts are chosen uniformly, as by random weights.
    const double bound = engine->cost(1, 1, 0).weight_bytes * n / engine->cost(n, 1, 0).weight_bytes;
    std::printf(
        "%2d sequences %7.2f tok/s, %5.2f times one; %7.2f tok/cpu-s, %5.2f times one; by bytes read %5.2f times one\n",
        n, rate.tok_s, rate.tok_s / one.tok_s, rate.tok_cpu_s, rate.tok_cpu_s / one.tok_cpu_s, bound);
    std::fflush(stdout);
  }
  for (const int64_t n : prompts) measure_prompt(scheduler, *engine, n);
  for (const int64_t n : stalls) {
    for (const int n_answers : {1, 8}) measure_stall(scheduler, *engine, n, n_answers, scheduling.max_stall.count());
  }
  return 0;
}
