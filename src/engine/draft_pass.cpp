#include "engine/draft_pass.h"

#include <algorithm>

#include "engine/attention_plan.h"
#include "sampling/softmax.h"

namespace fathom {
namespace {

/// The likeliest token. What is not a number is no guess: token 0 at probability 0.
Draft likeliest(std::span<const float> logits) {
  const LogitScan scan = scan_logits(logits);
  if (scan.has_nan) return {0, 0};
  const auto best = std::find(logits.begin(), logits.end(), scan.max);
  return {static_cast<int32_t>(best - logits.begin()), static_cast<float>(1.0 / sum_exp(logits, scan.max, 1.0F))};
}

}  // namespace

std::vector<Draft> DraftPass::run(const deepseek::Model& model, const Tensor& hidden, const std::vector<Tensor>& caches,
                                  std::span<const DraftPart> parts, const NodeHook& hook) {
  StepInputs& in = inputs_;
  in.clear();
  pages_.clear();
  for (size_t s = 0; s < parts.size(); ++s) {
    const DraftPart& part = parts[s];
    const auto n = static_cast<int64_t>(part.next_ids.size());
    const std::vector<int32_t> slots = part.sequence->slots(part.first_position, n);
    in.slots.insert(in.slots.end(), slots.begin(), slots.end());
    in.ids.insert(in.ids.end(), part.next_ids.begin(), part.next_ids.end());
    for (int64_t i = 0; i < n; ++i) {
      if (i >= n - part.n_drafts) in.output_rows.push_back(static_cast<int32_t>(in.positions.size()));
      in.positions.push_back(static_cast<int32_t>(part.first_position + i));
      in.selects = in.selects || model.config.chooses_at(part.first_position + i);
      in.sequence_of.push_back(static_cast<int32_t>(s));
      in.hidden_rows.push_back(static_cast<int32_t>(part.first_row + i));
    }
    in.expanded.push_back(n >= kExpandedPays && !model.config.has_indexer() ? 1 : 0);
    pages_.push_back(part.sequence->pages());
  }
  in.set_page_table(pages_);
  const deepseek::Step sent = in.send();
  Graph graph;
  const Tensor value = deepseek::forward_mtp(graph, model,
                                             {sent.token_ids, hidden, in.sent_hidden_rows(), sent.where,
                                              sent.output_rows, caches, AttentionForm::kAuto, sent.selects});
  if (value) graph.keep(value);
  if (hook) {
    executor_.run(graph, hook);
  } else {
    executor_.run(graph);
  }
  if (!value) {
    backend_.finish();
    return {};
  }
  Tensor logits = graph.resolve(value);
  if (!backend_.shares_host_memory()) {
    if (!host_logits_ || host_logits_->size_bytes() < logits.size_bytes()) {
      host_logits_.reset();
      host_logits_ = backend_.allocate_staging(logits.size_bytes(), "logits of drafts");
    }
    backend_.download(host_logits_->data(), logits.data, logits.size_bytes());
    logits.data = host_logits_->data();
  }
  std::vector<Draft> drafts;
  for (int64_t i = 0; i < logits.dim(0); ++i)
    drafts.push_back(likeliest({logits.row_as<float>(i), static_cast<size_t>(logits.dim(1))}));
  return drafts;
}

}  // namespace fathom
