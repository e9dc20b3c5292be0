// Batched serving: tokens a second of 1, 2, 4 .. sequences together, and what a long prompt does to those that run.
// bench_scheduler MODEL [MAX_SEQUENCES] [TOKENS] [PROMPT_TOKENS] [THREADS]
//
// Seconds of processor time are shown too: on a machine that is busy with other things they say more than the clock (with
// one thread: several wait for each other actively).
#include <algorithm>
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
  for (int64_t i = 0; i < n_prompt; ++i) r.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(engine.tokenizer().vocab().size())));
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

RequestHandle must_submit(Scheduler& scheduler, Request request) { return std::get<RequestHandle>(scheduler.submit(std::move(request))); }

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

struct Rates {
  double tok_s, tok_cpu_s;
};

/// Of n answers together, while all of them run: after the slowest's first token, and until the first ends.
Rates aggregate(Scheduler& scheduler, const Engine& engine, int n, int64_t n_tokens) {
  std::vector<RequestHandle> handles;
  for (int i = 0; i < n; ++i) handles.push_back(must_submit(scheduler, random_request(engine, 16, n_tokens, static_cast<uint32_t>(i))));
  std::vector<std::vector<Clock::time_point>> times(handles.size());
  const double cpu_before = cpu_seconds();
  const Clock::time_point wall_before = Clock::now();
  std::vector<std::thread> readers;
  for (size_t i = 0; i < handles.size(); ++i) readers.emplace_back([&, i] { times[i] = token_times(handles[i]); });
  for (std::thread& reader : readers) reader.join();
  Clock::time_point begin{}, end = Clock::time_point::max();
  for (const auto& t : times) begin = std::max(begin, t.front()), end = std::min(end, t.back());
  size_t tokens = 0;
  for (const auto& t : times) tokens += static_cast<size_t>(std::count_if(t.begin(), t.end(), [&](Clock::time_point at) { return at > begin && at <= end; }));
  const double rate = static_cast<double>(tokens) / std::chrono::duration<double>(end - begin).count();
  // Processor time is known for the whole only; it is shared out by the clock.
  return {rate, rate * seconds_since(wall_before) / (cpu_seconds() - cpu_before)};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_scheduler MODEL [MAX_SEQUENCES] [TOKENS] [PROMPT_TOKENS] [THREADS]\n");
    return 2;
  }
  const int most = argc > 2 ? std::atoi(argv[2]) : 8;
  const int64_t n_tokens = argc > 3 ? std::atoll(argv[3]) : 32, n_prompt = argc > 4 ? std::atoll(argv[4]) : 512;
  EngineOptions options;
  options.model_path = argv[1];
  options.n_threads = argc > 5 ? std::atoi(argv[5]) : 0;
  options.context = n_prompt + (64 + n_tokens) * 2 * most;
  const auto engine = Engine::load(options);
  std::printf("%s, %s\n", engine->info().type.c_str(), engine->backend_description().c_str());
  SchedulerOptions scheduling;
  scheduling.max_running = most;
  Scheduler scheduler(*engine, scheduling);
  aggregate(scheduler, *engine, 1, 4);
  Rates one{};
  for (int n = 1; n <= most; n *= 2) {
    const Rates rate = aggregate(scheduler, *engine, n, n_tokens);
    if (n == 1) one = rate;
    // What reading each weight once a step allows where experts are chosen uniformly, as by random weights.
    const double bound = engine->cost(1, 1, 0).weight_bytes * n / engine->cost(n, 1, 0).weight_bytes;
    std::printf("%2d sequences %7.2f tok/s, %5.2f times one; %7.2f tok/cpu-s, %5.2f times one; by bytes read %5.2f times one\n", n, rate.tok_s, rate.tok_s / one.tok_s,
                rate.tok_cpu_s, rate.tok_cpu_s / one.tok_cpu_s, bound);
    std::fflush(stdout);
  }
  RequestHandle talking = must_submit(scheduler, random_request(*engine, 16, n_tokens * 2, 100));
  std::vector<Clock::time_point> times;
  std::thread reader([&] { times = token_times(talking); });
  while (scheduler.stats().running == 0) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  RequestHandle reading = must_submit(scheduler, random_request(*engine, n_prompt, 1, 200));
  token_times(reading);
  std::printf("prompt of %lld tokens beside an answer: %.2f s\n", static_cast<long long>(n_prompt), seconds_since(start));
  reader.join();
  double gap = 0;
  for (size_t i = 1; i < times.size(); ++i) gap = std::max(gap, std::chrono::duration<double>(times[i] - times[i - 1]).count());
  std::printf("its longest wait for a token: %.0f ms (asked for %lld)\n", gap * 1000, static_cast<long long>(scheduling.max_stall.count()));
  return 0;
}
