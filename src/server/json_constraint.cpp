#include "server/json_constraint.h"

#include "core/error.h"
#include "core/printable.h"
#include "server/call_grammar.h"
#include "server/schema_grammar.h"

namespace fathom {
namespace {

class GrammarConstraint final : public TokenConstraint {
 public:
  GrammarConstraint(const Vocab& vocab, std::shared_ptr<const ByteGrammar> grammar,
                    std::shared_ptr<const TokenTrie> trie, bool after_reasoning)
      : vocab_(vocab),
        matcher_(std::move(grammar), std::move(trie)),
        in_reasoning_(after_reasoning),
        mask_((static_cast<size_t>(vocab.size()) + 63) / 64) {}

  std::span<const uint64_t> allowed() override {
    if (ended_) return only_ends();
    if (in_reasoning_) {
      // The answer is what was asked for: reasoning may not be all there is.
      mask_.assign(mask_.size(), ~uint64_t{0});
      for (const int32_t id : vocab_.end_ids()) mask_[word(id)] &= ~bit(id);
      return mask_;
    }
    const std::optional<std::span<const uint64_t>> mask = matcher_.allowed();
    if (!mask) return {};
    mask_.assign(mask->begin(), mask->end());
    if (matcher_.may_end()) {
      for (const int32_t id : vocab_.end_ids()) mask_[word(id)] |= bit(id);
    }
    return mask_;
  }

  void accept(int32_t token_id) override {
    if (ended_) return;
    const std::string_view bytes = vocab_.bytes(token_id);
    if (in_reasoning_) {
      tail_ += bytes;
      in_reasoning_ = !tail_.ends_with("</think>");
      if (tail_.size() > 64) tail_.erase(0, tail_.size() - 16);
    } else if (vocab_.is_end(token_id)) {
      ended_ = true;
    } else if (!matcher_.accept(token_id, bytes)) {
      throw Error(ErrorCode::kRuntime,
                  "answer: the token " + in_quotes(bytes) + " does not fit the grammar; the answer cannot go on");
    }
  }

 private:
  static size_t word(int32_t id) { return static_cast<size_t>(id) / 64; }
  static uint64_t bit(int32_t id) { return uint64_t{1} << (static_cast<size_t>(id) % 64); }

  std::span<const uint64_t> only_ends() {
    mask_.assign(mask_.size(), 0);
    for (const int32_t id : vocab_.end_ids()) mask_[word(id)] |= bit(id);
    return mask_;
  }

  const Vocab& vocab_;
  GrammarMatcher matcher_;
  bool in_reasoning_;
  bool ended_ = false;
  std::string tail_;  // of the reasoning
  std::vector<uint64_t> mask_;
};

ConstraintFactory factory(Service& service, std::shared_ptr<const ByteGrammar> grammar, bool after_reasoning) {
  const Vocab& vocab = service.engine.tokenizer().vocab();
  return [&vocab, grammar = std::move(grammar), trie = service.token_trie(), after_reasoning] {
    return std::make_shared<GrammarConstraint>(vocab, grammar, trie, after_reasoning);
  };
}

}  // namespace

std::shared_ptr<const TokenTrie> make_token_trie(const Vocab& vocab) {
  std::vector<TokenTrie::Token> tokens;
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const bool is_text = vocab.type(id) == TokenType::kNormal || vocab.type(id) == TokenType::kByte;
    if (is_text && !vocab.bytes(id).empty() && !vocab.is_end(id)) tokens.push_back({vocab.bytes(id), id});
  }
  return std::make_shared<TokenTrie>(std::move(tokens), static_cast<size_t>(vocab.size()));
}

ConstraintFactory constrain_answer(Service& service, const AnswerFormat& format, bool after_reasoning) {
  return factory(service, make_json_grammar(format.schema, "response_format.schema"), after_reasoning);
}

std::shared_ptr<const ByteGrammar> make_json_grammar(const std::optional<ChatJson>& schema, const std::string& where) {
  auto grammar = std::make_shared<ByteGrammar>();
  SchemaGrammar schemas(*grammar);
  const ByteGrammar::RuleId value = schema ? schemas.value(*schema, where) : schemas.any_object();
  grammar->start = grammar->add_rule();
  grammar->add_alternative(grammar->start, {ByteGrammar::rule(schemas.space()), ByteGrammar::rule(value)});
  return grammar;
}

std::shared_ptr<TokenConstraint> constrain_to_grammar(const Vocab& vocab, std::shared_ptr<const ByteGrammar> grammar,
                                                      bool after_reasoning) {
  return std::make_shared<GrammarConstraint>(vocab, std::move(grammar), make_token_trie(vocab), after_reasoning);
}

ConstraintFactory constrain_call(Service& service, const ForcedCall& call, const ChatTool* named,
                                 const std::vector<ChatTool>& tools) {
  const Vocab& vocab = service.engine.tokenizer().vocab();
  return factory(service,
                 make_call_grammar(call, named, tools, [&](std::string_view marker) { return vocab.find(marker); }),
                 false);
}

}  // namespace fathom
