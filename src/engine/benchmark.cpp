#include "engine/benchmark.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace fathom {
namespace {

/// Token ids without a pattern, the same in every run (splitmix64).
std::vector<int32_t> random_ids(int64_t n, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) {
    seed += 0x9e3779b97f4a7c15U;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    id = static_cast<int32_t>((z ^ (z >> 31)) % static_cast<uint64_t>(vocab));
  }
  return ids;
}

double seconds_of(const std::function<void()>& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void must(bool done) {
  if (!done)
    throw Error(ErrorCode::kNoMemory,
                "bench: the cache has no page left; expected room for depth, tokens and batch; try a smaller -d or -b");
}

}  // namespace

int64_t BenchOptions::pool_tokens() const {
  auto largest = [](const std::vector<int64_t>& v, const char* what, int64_t lowest) {
    for (const int64_t x : v) {
      if (x < lowest)
        throw Error(ErrorCode::kUsage, std::string("bench: ") + what + " out of range; expected " +
                                           std::to_string(lowest) + " or more, got " + std::to_string(x));
    }
    return v.empty() ? 0 : *std::max_element(v.begin(), v.end());
  };
  const int64_t tokens =
      std::max(largest(prefill_tokens, "prefill tokens", 0), largest(decode_tokens, "decode tokens", 0));
  const int64_t depth = largest(depths, "depth", 0), batch = largest(batches, "batch", 1);
  // The prefix is shared; every sequence adds its own tokens and the copy of a page it shares.
  return depth + batch * (tokens + 2 * kPageTokens);
}

std::vector<BenchRow> run_benchmark(Engine& engine, const BenchOptions& options, const SpeedBounds& bounds,
                                    const std::function<void(const BenchRow&)>& on_row,
                                    const std::function<void(const std::string&)>& note) {
  const int64_t vocab = engine.info().vocab_size;
  std::vector<BenchRow> rows;
  for (const int64_t depth : options.depths) {
    Sequence prefix(engine.pool());
    if (depth > 0) {
      note("filling the cache with " + std::to_string(depth) + " tokens");
      must(engine.prefill(prefix, random_ids(depth, vocab, 1), Outputs::kNone));
    }
    auto measure = [&](const std::string& test, int64_t tokens, int64_t batch,
                       const std::function<void(std::vector<Sequence>&)>& run) {
      std::vector<double> seconds;
      for (int i = 0; i < options.repetitions; ++i) {
        std::vector<Sequence> sequences;
        for (int64_t b = 0; b < batch; ++b) sequences.push_back(prefix.fork());
        seconds.push_back(seconds_of([&] { run(sequences); }));
      }
      std::sort(seconds.begin(), seconds.end());
      BenchRow row{test, tokens, depth, batch};
      const double total = static_cast<double>(tokens * batch);
      row.seconds_median = seconds[seconds.size() / 2];
      row.tok_s_median = total / row.seconds_median;
      row.tok_s_max = total / seconds.front();
      row.tok_s_min = total / seconds.back();
      // A prefill is cut into chunks that each read the weights again; decode takes a step for every token.
      double bytes = 0, ops = 0;
      const int64_t step_tokens = test == "decode" ? 1 : engine.chunk_tokens();
      for (int64_t done = 0; done < tokens; done += step_tokens) {
        const StepCost c = engine.cost(batch, std::min(step_tokens, tokens - done), depth + done);
        bytes += c.weight_bytes + c.cache_bytes;
        ops += c.matmul_ops + c.attention_ops;
      }
      row.gb_s = bytes / row.seconds_median / 1e9;
      row.gop_s = ops / row.seconds_median / 1e9;
      row.percent_of_bound =
          test == "decode" ? 100 * row.gb_s / bounds.read_gb_s : 100 * row.gop_s / bounds.matrix_gop_s;
      rows.push_back(row);
      on_row(row);
    };
    for (const int64_t tokens : options.prefill_tokens) {
      if (tokens == 0) continue;
      const std::vector<int32_t> ids = random_ids(tokens, vocab, 2);
      auto prefill = [&](std::vector<Sequence>& sequences) {
        for (Sequence& s : sequences) must(engine.prefill(s, ids, Outputs::kLast));
      };
      note("warming up");
      Sequence warm = prefix.fork();
      must(engine.prefill(warm, ids, Outputs::kLast));
      warm.clear();
      measure("prefill", tokens, 1, prefill);
    }
    for (const int64_t tokens : options.decode_tokens) {
      if (tokens == 0) continue;
      for (const int64_t batch : options.batches) {
        const std::vector<int32_t> ids = random_ids(tokens * batch, vocab, 3);
        auto decode = [&](std::vector<Sequence>& sequences, int64_t n_steps) {
          for (int64_t step = 0; step < n_steps; ++step) {
            std::vector<StepPart> parts;
            for (size_t b = 0; b < sequences.size(); ++b)
              parts.push_back(
                  {&sequences[b], {ids.data() + step * batch + static_cast<int64_t>(b), 1}, Outputs::kLast});
            must(engine.step(parts) == StepStatus::kDone);
          }
        };
        note("warming up");
        std::vector<Sequence> warm;
        for (int64_t b = 0; b < batch; ++b) warm.push_back(prefix.fork());
        decode(warm, std::min<int64_t>(tokens, 8));
        warm.clear();
        measure("decode", tokens, batch, [&](std::vector<Sequence>& s) { decode(s, tokens); });
      }
    }
  }
  return rows;
}

}  // namespace fathom
