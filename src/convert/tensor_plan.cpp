#include "convert/tensor_plan.h"

#include <set>

#include "convert/checkpoint_rows.h"
#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

std::string numbered(const std::string& before, int64_t i, const std::string& after = ".") {
  return before + std::to_string(i) + after;
}

/// Builds the list, remembering which tensors of the checkpoint it has used.
class Planner {
 public:
  Planner(const HfConfig& config, const SafetensorsModel& model, const PlanOptions& options)
      : c_(config), model_(model), options_(options) {}

  TensorPlan plan() {
    const bool is_v4 = c_.generation == HfGeneration::kV4;
    plan_.has_mtp = wants_mtp();
    matrix("token_embd.weight", is_v4 ? "embed.weight" : "model.embed_tokens.weight", c_.vocab_size, c_.hidden_size);
    for (int64_t i = 0; i < c_.n_layers; ++i) {
      if (is_v4) {
        block_v4(numbered("blk.", i), numbered("layers.", i), c_.compress_ratios[static_cast<size_t>(i)],
                 i < c_.n_hash_layers);
      } else {
        block(numbered("blk.", i), numbered("model.layers.", i), c_.is_moe_layer(i));
      }
    }
    for (int64_t k = 0; plan_.has_mtp && k < c_.n_mtp_layers; ++k) is_v4 ? mtp_v4(k) : mtp(c_.n_layers + k);
    if (is_v4) hyper_head("output_hc_", "");
    vector("output_norm.weight", is_v4 ? "norm.weight" : "model.norm.weight", c_.hidden_size);
    const std::string head = is_v4 ? "head.weight" : "lm_head.weight";
    // A tied head may be stored all the same; readers take the embedding where there is no output.weight.
    if (!c_.is_tied || model_.find(head) != nullptr) matrix("output.weight", head, c_.vocab_size, c_.hidden_size);
    check_leftovers();
    return std::move(plan_);
  }

 private:
  bool wants_mtp() {
    if (c_.n_mtp_layers == 0) return false;
    const bool is_v4 = c_.generation == HfGeneration::kV4;
    const std::string mark = is_v4 ? "mtp.0.e_proj.weight" : numbered("model.layers.", c_.n_layers) + "eh_proj.weight";
    if (model_.find(mark) == nullptr) {
      plan_.notes.push_back("config.json announces " + std::to_string(c_.n_mtp_layers) +
                            " MTP layer(s), the checkpoint has none");
      return false;
    }
    if (options_.mtp == MtpChoice::kAuto && is_v4) {
      plan_.notes.push_back("the MTP layer is left out, as llama.cpp refuses V4 files that have it; --mtp keeps it");
      return false;
    }
    const bool is_kept = options_.mtp != MtpChoice::kLeaveOut;
    plan_.notes.push_back(!is_kept ? "the MTP layer is left out"
                          : is_v4  ? "the MTP layer is kept; llama.cpp refuses V4 files that have it"
                                   : "the MTP layer is kept, for speculation");
    return is_kept;
  }

  SourceMatrix bind(const std::string& from, int64_t rows, int64_t cols) {
    used_.insert(from);
    return SourceMatrix::bind(model_, c_, from, rows, cols);
  }

  void add(std::string name, Shape shape, DType type, std::shared_ptr<const RowSource> rows) {
    plan_.tensors.push_back({std::move(name), shape, type, std::move(rows)});
  }

  void matrix(const std::string& name, const std::string& from, int64_t rows, int64_t cols) {
    SourceMatrix m = bind(from, rows, cols);
    const DType type = m.type();
    add(name, {rows, cols}, type, stacked_rows({std::move(m)}));
  }

  void vector(const std::string& name, const std::string& from, int64_t n) {
    SourceMatrix m = bind(from, 1, n);
    const DType type = m.type();
    add(name, {n}, type, stacked_rows({std::move(m)}));
  }

  void gated_ffn(const std::string& to, const std::string& suffix, const std::string& gate, const std::string& up,
                 const std::string& down, int64_t width) {
    matrix(to + "ffn_gate" + suffix, gate, width, c_.hidden_size);
    matrix(to + "ffn_up" + suffix, up, width, c_.hidden_size);
    matrix(to + "ffn_down" + suffix, down, c_.hidden_size, width);
  }

  /// `from`: before the expert's number; `part`: after it.
  void experts(const std::string& name, const std::string& from, const std::string& part, int64_t rows, int64_t cols) {
    std::vector<SourceMatrix> parts;
    for (int64_t e = 0; e < c_.n_experts; ++e) parts.push_back(bind(numbered(from, e) + part, rows, cols));
    DType type = parts.front().type();
    for (const SourceMatrix& p : parts) {
      if (p.type() != type) type = DType::kF32;  // mixed: what holds them all
    }
    add(name, {c_.n_experts, rows, cols}, type, stacked_rows(std::move(parts)));
  }

  void attention_mha(const std::string& to, const std::string& from) {
    for (const std::string kind : {"q", "k", "v"}) {
      const int64_t heads = kind == "q" ? c_.n_heads : c_.n_kv_heads;
      SourceMatrix m = bind(from + kind + "_proj.weight", heads * c_.head_dim, c_.hidden_size);
      const DType type = m.type();
      add(to + "attn_" + kind + ".weight", {heads * c_.head_dim, c_.hidden_size}, type,
          kind == "v" ? stacked_rows({std::move(m)}) : rotary_rows(std::move(m), heads));
    }
    matrix(to + "attn_output.weight", from + "o_proj.weight", c_.hidden_size, c_.n_heads * c_.head_dim);
  }

  void attention_mla(const std::string& to, const std::string& from) {
    const int64_t qk = c_.qk_nope_head_dim + c_.qk_rope_head_dim;
    if (c_.q_lora_rank > 0) {
      matrix(to + "attn_q_a.weight", from + "q_a_proj.weight", c_.q_lora_rank, c_.hidden_size);
      vector(to + "attn_q_a_norm.weight", from + "q_a_layernorm.weight", c_.q_lora_rank);
      matrix(to + "attn_q_b.weight", from + "q_b_proj.weight", c_.n_heads * qk, c_.q_lora_rank);
    } else {
      matrix(to + "attn_q.weight", from + "q_proj.weight", c_.n_heads * qk, c_.hidden_size);
    }
    matrix(to + "attn_kv_a_mqa.weight", from + "kv_a_proj_with_mqa.weight", c_.kv_lora_rank + c_.qk_rope_head_dim,
           c_.hidden_size);
    vector(to + "attn_kv_a_norm.weight", from + "kv_a_layernorm.weight", c_.kv_lora_rank);
    const std::string kv_b_name = from + "kv_b_proj.weight";
    const int64_t kv_b_rows = c_.n_heads * (c_.qk_nope_head_dim + c_.v_head_dim);
    if (options_.splits_kv_b) {
      const SourceMatrix kv_b = bind(kv_b_name, kv_b_rows, c_.kv_lora_rank);
      add(to + "attn_k_b.weight", {c_.n_heads, c_.kv_lora_rank, c_.qk_nope_head_dim}, kv_b.type(),
          transposed_keys(kv_b, c_.n_heads, c_.qk_nope_head_dim));
      add(to + "attn_v_b.weight", {c_.n_heads, c_.v_head_dim, c_.kv_lora_rank}, kv_b.type(),
          value_rows(kv_b, c_.n_heads, c_.qk_nope_head_dim));
    } else {
      matrix(to + "attn_kv_b.weight", kv_b_name, kv_b_rows, c_.kv_lora_rank);
    }
    matrix(to + "attn_output.weight", from + "o_proj.weight", c_.hidden_size, c_.n_heads * c_.v_head_dim);
    if (c_.generation != HfGeneration::kV32) return;
    matrix(to + "indexer.attn_q_b.weight", from + "indexer.wq_b.weight", c_.index_n_heads * c_.index_head_dim,
           c_.q_lora_rank);
    matrix(to + "indexer.attn_k.weight", from + "indexer.wk.weight", c_.index_head_dim, c_.hidden_size);
    vector(to + "indexer.k_norm.weight", from + "indexer.k_norm.weight", c_.index_head_dim);
    vector(to + "indexer.k_norm.bias", from + "indexer.k_norm.bias", c_.index_head_dim);
    matrix(to + "indexer.proj.weight", from + "indexer.weights_proj.weight", c_.index_n_heads, c_.hidden_size);
  }

  void block(const std::string& to, const std::string& from, bool is_moe) {
    vector(to + "attn_norm.weight", from + "input_layernorm.weight", c_.hidden_size);
    c_.generation == HfGeneration::kV1 ? attention_mha(to, from + "self_attn.")
                                       : attention_mla(to, from + "self_attn.");
    vector(to + "ffn_norm.weight", from + "post_attention_layernorm.weight", c_.hidden_size);
    const auto dense = [&](const std::string& suffix, const std::string& p, int64_t width) {
      gated_ffn(to, suffix, p + "gate_proj.weight", p + "up_proj.weight", p + "down_proj.weight", width);
    };
    if (!is_moe) return dense(".weight", from + "mlp.", c_.intermediate_size);
    matrix(to + "ffn_gate_inp.weight", from + "mlp.gate.weight", c_.n_experts, c_.hidden_size);
    if (c_.has_router_bias) vector(to + "exp_probs_b.bias", from + "mlp.gate.e_score_correction_bias", c_.n_experts);
    experts(to + "ffn_gate_exps.weight", from + "mlp.experts.", "gate_proj.weight", c_.moe_intermediate_size,
            c_.hidden_size);
    experts(to + "ffn_up_exps.weight", from + "mlp.experts.", "up_proj.weight", c_.moe_intermediate_size,
            c_.hidden_size);
    experts(to + "ffn_down_exps.weight", from + "mlp.experts.", "down_proj.weight", c_.hidden_size,
            c_.moe_intermediate_size);
    if (c_.n_shared_experts > 0)
      dense("_shexp.weight", from + "mlp.shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size);
  }

  void mtp(int64_t layer) {
    const std::string to = numbered("blk.", layer), from = numbered("model.layers.", layer);
    const int64_t d = c_.hidden_size;
    // The released checkpoints repeat the embedding and the head here; a checkpoint without the copies is as good.
    if (model_.find(from + "embed_tokens.weight") != nullptr)
      matrix(to + "nextn.embed_tokens.weight", from + "embed_tokens.weight", c_.vocab_size, d);
    vector(to + "nextn.enorm.weight", from + "enorm.weight", d);
    vector(to + "nextn.hnorm.weight", from + "hnorm.weight", d);
    matrix(to + "nextn.eh_proj.weight", from + "eh_proj.weight", d, 2 * d);
    vector(to + "nextn.shared_head_norm.weight", from + "shared_head.norm.weight", d);
    if (model_.find(from + "shared_head.head.weight") != nullptr)
      matrix(to + "nextn.shared_head_head.weight", from + "shared_head.head.weight", c_.vocab_size, d);
    block(to, from, true);
  }

  void hyper_head(const std::string& to, const std::string& from) {
    matrix(to + "fn.weight", from + "hc_head_fn", c_.hc_mult, c_.hc_mult * c_.hidden_size);
    vector(to + "base.weight", from + "hc_head_base", c_.hc_mult);
    vector(to + "scale.weight", from + "hc_head_scale", 1);
  }

  void compressor(const std::string& to, const std::string& from, int64_t ratio, int64_t head_dim) {
    const int64_t width = head_dim * (ratio == 4 ? 2 : 1);  // windows of ratio 4 overlap: two sets of channels
    matrix(to + "ape.weight", from + "ape", ratio, width);
    matrix(to + "kv.weight", from + "wkv.weight", width, c_.hidden_size);
    matrix(to + "gate.weight", from + "wgate.weight", width, c_.hidden_size);
    vector(to + "norm.weight", from + "norm.weight", head_dim);
  }

  void block_v4(const std::string& to, const std::string& from, int64_t ratio, bool is_hashed) {
    const int64_t d = c_.hidden_size, mixes = (2 + c_.hc_mult) * c_.hc_mult;
    for (const std::string part : {"hc_attn_", "hc_ffn_"}) {
      matrix(to + part + "fn.weight", from + part + "fn", mixes, c_.hc_mult * d);
      vector(to + part + "base.weight", from + part + "base", mixes);
      vector(to + part + "scale.weight", from + part + "scale", 3);
    }
    vector(to + "attn_norm.weight", from + "attn_norm.weight", d);
    const std::string a = from + "attn.";
    vector(to + "attn_sinks.weight", a + "attn_sink", c_.n_heads);
    matrix(to + "attn_q_a.weight", a + "wq_a.weight", c_.q_lora_rank, d);
    vector(to + "attn_q_a_norm.weight", a + "q_norm.weight", c_.q_lora_rank);
    matrix(to + "attn_q_b.weight", a + "wq_b.weight", c_.n_heads * c_.head_dim, c_.q_lora_rank);
    matrix(to + "attn_kv.weight", a + "wkv.weight", c_.head_dim, d);
    vector(to + "attn_kv_a_norm.weight", a + "kv_norm.weight", c_.head_dim);
    matrix(to + "attn_output_a.weight", a + "wo_a.weight", c_.o_groups * c_.o_lora_rank,
           c_.n_heads * c_.head_dim / c_.o_groups);
    matrix(to + "attn_output_b.weight", a + "wo_b.weight", d, c_.o_groups * c_.o_lora_rank);
    if (ratio > 0) compressor(to + "attn_compressor_", a + "compressor.", ratio, c_.head_dim);
    if (ratio == 4) {
      matrix(to + "indexer.attn_q_b.weight", a + "indexer.wq_b.weight", c_.index_n_heads * c_.index_head_dim,
             c_.q_lora_rank);
      matrix(to + "indexer.proj.weight", a + "indexer.weights_proj.weight", c_.index_n_heads, d);
      compressor(to + "indexer_compressor_", a + "indexer.compressor.", ratio, c_.index_head_dim);
    }
    const std::string f = from + "ffn.";
    vector(to + "ffn_norm.weight", from + "ffn_norm.weight", d);
    matrix(to + "ffn_gate_inp.weight", f + "gate.weight", c_.n_experts, d);
    if (is_hashed) {
      expert_table(to + "ffn_gate_tid2eid.weight", f + "gate.tid2eid");
    } else {
      vector(to + "exp_probs_b.bias", f + "gate.bias", c_.n_experts);
    }
    experts(to + "ffn_gate_exps.weight", f + "experts.", "w1.weight", c_.moe_intermediate_size, d);
    experts(to + "ffn_up_exps.weight", f + "experts.", "w3.weight", c_.moe_intermediate_size, d);
    experts(to + "ffn_down_exps.weight", f + "experts.", "w2.weight", d, c_.moe_intermediate_size);
    const std::string s = f + "shared_experts.";
    if (c_.n_shared_experts > 0)
      gated_ffn(to, "_shexp.weight", s + "w1.weight", s + "w3.weight", s + "w2.weight",
                c_.n_shared_experts * c_.moe_intermediate_size);
  }

  void expert_table(const std::string& name, const std::string& from) {
    used_.insert(from);
    const SafetensorsTensor* table = model_.find(from);
    const std::vector<int64_t> shape = {c_.vocab_size, c_.n_experts_used};
    if (table == nullptr || table->shape != shape ||
        (table->type != SafetensorsType::kI64 && table->type != SafetensorsType::kI32)) {
      throw Error(ErrorCode::kModel, printable(c_.path, 400) + ": the checkpoint's table " + in_quotes(from) +
                                         " is missing or of another kind; expected I64 or I32 [" +
                                         std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + "], got " +
                                         (table == nullptr ? "nothing"
                                                           : std::string(safetensors_type_name(table->type)) + " in " +
                                                                 std::to_string(table->shape.size()) + " dimensions") +
                                         "; try to download the checkpoint again");
    }
    add(name, {shape[0], shape[1]}, DType::kI32, integer_rows(*table, from, c_.n_experts));
  }

  void mtp_v4(int64_t k) {
    const std::string to = numbered("blk.", c_.n_layers + k), from = numbered("mtp.", k);
    const int64_t d = c_.hidden_size;
    SourceMatrix embedding_half = bind(from + "e_proj.weight", d, d), hidden_half = bind(from + "h_proj.weight", d, d);
    const DType type = embedding_half.type();
    add(to + "nextn.eh_proj.weight", {d, 2 * d}, type, side_by_side(std::move(embedding_half), std::move(hidden_half)));
    vector(to + "nextn.enorm.weight", from + "enorm.weight", d);
    vector(to + "nextn.hnorm.weight", from + "hnorm.weight", d);
    vector(to + "nextn.shared_head_norm.weight", from + "norm.weight", d);
    hyper_head(to + "nextn.hc_head_", from);
    block_v4(to, from, 0, false);
  }

  /// A tensor without a place would be silently lost weight: only what is known to carry none may remain.
  void check_leftovers() {
    for (const auto& [name, tensor] : model_.tensors()) {
      if (used_.contains(name) || name.ends_with("rotary_emb.inv_freq") || SourceMatrix::is_scale_of(name, model_))
        continue;
      if (is_of_mtp(name) && !plan_.has_mtp) continue;
      throw Error(ErrorCode::kModel, printable(tensor.file->path(), 400) + ": tensor " + in_quotes(name) +
                                         " has no place in a " + c_.architecture + " model of " +
                                         std::to_string(c_.n_layers) +
                                         " layers; expected only the tensors of that generation, got one more; try the "
                                         "checkpoint's own config.json");
    }
  }

  bool is_of_mtp(const std::string& name) const {
    if (c_.generation == HfGeneration::kV4) return name.starts_with("mtp.");
    for (int64_t k = 0; k < c_.n_mtp_layers; ++k) {
      if (name.starts_with(numbered("model.layers.", c_.n_layers + k))) return true;
    }
    return false;
  }

  const HfConfig& c_;
  const SafetensorsModel& model_;
  const PlanOptions& options_;
  TensorPlan plan_;
  std::set<std::string> used_;
};

}  // namespace

TensorPlan plan_tensors(const HfConfig& config, const SafetensorsModel& model, const PlanOptions& options) {
  return Planner(config, model, options).plan();
}

}  // namespace fathom
