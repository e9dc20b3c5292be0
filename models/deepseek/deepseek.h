// The forward pass of DeepSeek V1, V2, V3, R1, V3.1, V3.2 and V4.
#pragma once

#include <vector>

#include "deepseek/config.h"
#include "deepseek/weights.h"
#include "graph/graph.h"

namespace fathom::deepseek {

struct Model {
  Config config;
  Weights weights;
};

/// The tokens of one step, of one or several sequences, and the cache they extend.
struct Step {
  Tensor token_ids;  ///< [T] I32
  StepTensors where;
  Tensor output_rows;  ///< [P] I32: the tokens whose logits are wanted, rising; empty: none, the cache alone is filled
  std::vector<Tensor> caches;  ///< as Config::cache_rows() lists them: [pages, rows of a page, elements]
  AttentionForm attention = AttentionForm::kAuto;
  /// Of a model with an indexer: some token sees more than index_topk rows. Else all attend to all rows, with the same
  /// bits, and only index keys are stored.
  bool selects = false;
  /// [T, D] f32, or empty: where the hidden states of all tokens go, after the last norm, for forward_mtp.
  Tensor hidden{};
};

/// What the MTP block is asked: for tokens that a pass has evaluated, what follows the token after each.
struct MtpStep {
  Tensor next_ids;             ///< [T] I32: the token after each
  Tensor hidden;               ///< [M, D] f32: Step::hidden of that pass
  Tensor hidden_rows;          ///< [T] I32 rows of it
  StepTensors where;           ///< of the evaluated tokens
  Tensor output_rows;          ///< [P] I32, as in Step
  std::vector<Tensor> caches;  ///< of the block: what a layer has, as in Step
  AttentionForm attention = AttentionForm::kAuto;
  bool selects = false;  ///< as in Step
};

/// Adds the whole pass to the graph. Returns logits [P, W] f32, or an empty tensor if no output row is wanted.
Tensor forward(Graph& g, const Model& model, const Step& step);

/// Adds the MTP block's pass (model.weights.mtp) to the graph. Returns the logits of the token after next [P, W] f32,
/// or an empty tensor. Source: arXiv:2412.19437, section 2.2.
Tensor forward_mtp(Graph& g, const Model& model, const MtpStep& step);

}  // namespace fathom::deepseek
