#include "server/json_constraint.h"

#include <optional>

#include "core/error.h"
#include "core/printable.h"
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

/// Markers are their tokens where the vocabulary has them, else their spelling.
void append_parts(ByteGrammar& grammar, ByteGrammar::Row& row, const std::vector<PromptPart>& parts,
                  const Vocab& vocab) {
  for (const PromptPart& part : parts) {
    const std::optional<int32_t> marker = part.special ? vocab.find(part.text) : std::nullopt;
    if (marker)
      row.push_back(ByteGrammar::token(*marker));
    else
      grammar.append_literal(row, part.text);
  }
}

/// The arguments of a strict tool fit its schema or the request is refused; those of others are an object in any case,
/// and fit if the schema can be kept to.
ByteGrammar::RuleId arguments_of(SchemaGrammar& schemas, const ChatTool& tool) {
  const auto strict = tool.function.find("strict");
  const bool must_fit = strict != tool.function.end() && strict->is_boolean() && strict->get<bool>();
  if (!tool.parameters.contains("type")) return schemas.any_object();
  try {
    return schemas.value(tool.parameters, "tools." + tool.name + ".parameters");
  } catch (const Error&) {
    if (must_fit) throw;
    return schemas.any_object();
  }
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
  auto grammar = std::make_shared<ByteGrammar>();
  SchemaGrammar schemas(*grammar);
  const ByteGrammar::RuleId value =
      format.schema ? schemas.value(*format.schema, "response_format.schema") : schemas.any_object();
  grammar->start = grammar->add_rule();
  grammar->add_alternative(grammar->start, {ByteGrammar::rule(schemas.space()), ByteGrammar::rule(value)});
  return factory(service, std::move(grammar), after_reasoning);
}

ConstraintFactory constrain_call(Service& service, const ForcedCall& call, const ChatTool* named,
                                 const std::vector<ChatTool>& tools) {
  const Vocab& vocab = service.engine.tokenizer().vocab();
  auto grammar = std::make_shared<ByteGrammar>();
  SchemaGrammar schemas(*grammar);
  grammar->start = grammar->add_rule();
  for (const ChatTool& tool : tools) {
    if (named != nullptr && named != &tool && named->name != tool.name) continue;
    ByteGrammar::Row row;
    if (!call.names_tool) {
      grammar->append_literal(row, tool.name);
      append_parts(*grammar, row, call.name_end, vocab);
    }
    if (call.syntax == ToolSyntax::kDsml) {
      row.push_back(ByteGrammar::anything());  // arguments are elements there, not JSON
    } else {
      row.push_back(ByteGrammar::rule(arguments_of(schemas, tool)));
      append_parts(*grammar, row, call.closing, vocab);
    }
    grammar->add_alternative(grammar->start, row);
  }
  return factory(service, std::move(grammar), false);
}

}  // namespace fathom
