// From the logits of one position to one token.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace fathom {

/// How the next token is chosen. The steps, in this order (llama.cpp's: the temperature comes last, so that top_k,
/// top_p and min_p see the model's own distribution; OpenAI's top_p is applied after the temperature):
///
///   1. logit_bias     logit += bias; -infinity forbids the token
///   2. repeat_penalty logit > 0 ? logit / x : logit * x, for each token among the last repeat_last_n of prompt and
///   answer
///   3. frequency_penalty, presence_penalty   logit -= frequency * count + presence, for each token with `count` > 0 in
///                     the answer so far (the prompt does not count)
///   4. allowed tokens the others are removed (constrained output)
///   5. temperature 0  the highest logit wins, the lowest id among equals; nothing below happens
///   6. top_k          the k highest logits stay; lower ids first among equals
///   7. top_p          softmax of what is left; the fewest most likely tokens whose sum reaches top_p stay, at least
///   one
///   8. min_p          tokens with probability >= min_p times the highest stay
///   9. temperature    softmax(logit / temperature) of what is left; one token is drawn
struct SamplingParams {
  float temperature = 0.6f;             ///< 0..100; below 1e-5 means 0
  int32_t top_k = 0;                    ///< 0: off
  float top_p = 0.95f;                  ///< 0..1; 1: off; 0 leaves the most likely token
  float min_p = 0.0f;                   ///< 0..1; 0: off
  float repeat_penalty = 1.0f;          ///< 0.01..100; 1: off
  int32_t repeat_last_n = 64;           ///< tokens the repeat penalty looks back; 0: off
  float frequency_penalty = 0.0f;       ///< -100..100; 0: off
  float presence_penalty = 0.0f;        ///< -100..100; 0: off
  std::map<int32_t, float> logit_bias;  ///< token id -> -1000..1000 or -infinity; at most kMaxLogitBias entries
  uint64_t seed = 0;

  static constexpr size_t kMaxLogitBias = 4096;

  /// Throws Error{kUsage} naming the field, its range and the value. NaN and infinities are out of every range (but see
  /// logit_bias); token ids must lie in [0, vocab_size).
  void validate(int64_t vocab_size) const;
};

struct TokenChoice {
  int32_t id;
  float logprob;  ///< natural log of the model's own probability: softmax of the logits as given, before any step above
};

/// The sampler of one sequence. The random number of a token depends on the seed and on how many tokens were accepted
/// before it, on nothing else: the same logits give the same text whatever runs beside it, and asking twice gives the
/// same answer. A speculating caller samples each verified position in turn and accepts what it got. Not thread-safe;
/// keeps 0.5 MB of scratch for a vocabulary of 129280, 4 MB after a nearly flat distribution.
class Sampler {
 public:
  /// `params` must have passed validate().
  explicit Sampler(SamplingParams params);

  /// Tokens before the answer, seen by the repeat penalty only. Before the first accept().
  void prime(std::span<const int32_t> prompt_ids);

  /// Chooses from logits [W]. `allowed`: bit id % 64 of word id / 64 is set for tokens that may be chosen; empty: all.
  /// Throws Error{kRuntime} if a logit is NaN or +infinity or no token may be chosen, BugError if `allowed` is too
  /// short.
  TokenChoice sample(std::span<const float> logits, std::span<const uint64_t> allowed = {});

  /// The token became part of the answer.
  void accept(int32_t token_id);

  const SamplingParams& params() const { return params_; }
  uint64_t n_accepted() const { return n_accepted_; }

 private:
  struct Candidate {
    float logit;
    float weight;  // e^(logit - highest logit)
    int32_t id;
  };

  bool edit_logits(std::span<const uint64_t> allowed);
  bool narrow(float max, std::optional<double> total);
  double gather(float lowest, float max);
  void cut_after(double target, bool by_count);
  int32_t draw_from_all(float max) const;
  int32_t draw_from_candidates(float max);
  void remember(int32_t token_id);

  SamplingParams params_;
  std::deque<int32_t> window_;  // the last repeat_last_n tokens, if the repeat penalty is on
  std::unordered_map<int32_t, int32_t> window_counts_;
  std::unordered_map<int32_t, int32_t> answer_counts_;
  uint64_t n_accepted_ = 0;
  // Scratch of sample().
  std::vector<float> logits_;          // after steps 1 to 4
  std::vector<Candidate> candidates_;  // what is left after steps 6 to 8, by id
  std::vector<int32_t> near_ids_;      // gather()
  std::vector<Candidate> rest_;        // cut_after()
  std::vector<double> histogram_;      // cut_after()
};

/// The k most likely tokens (all of them if W < k), most likely first, lower ids first among equals; log-probabilities
/// as TokenChoice says. Throws Error{kRuntime} if a logit is NaN or +infinity.
std::vector<TokenChoice> top_logprobs(std::span<const float> logits, int k);

}  // namespace fathom
