#include "engine/weight_tap.h"

#include <algorithm>
#include <cmath>

#include "core/quant/dequantize.h"

namespace fathom {
namespace {

constexpr int64_t kPlainMatrix = -1;

std::string with_ending(const std::string& name, const std::string& ending) {
  return name.substr(0, name.rfind("attn_")) + ending;
}

}  // namespace

WeightTap::WeightTap(const std::map<std::string, Tensor>& tensors, Backend& backend, WeightObserver& observer)
    : backend_(backend), observer_(observer) {
  for (const auto& [name, tensor] : tensors) names_.emplace(tensor.data, &name);
}

const std::string* WeightTap::name_of(const Tensor& weight) const {
  const auto it = names_.find(weight.data);
  return it == names_.end() ? nullptr : it->second;
}

void WeightTap::report(const Tensor& weight, const Tensor& rows, int64_t matrix, int64_t n_matrices) {
  // Half of a fused tensor begins in its middle and has no name: the other half tells the same.
  const std::string* name = name_of(weight);
  if (name == nullptr || rows.dim(0) == 0) return;
  observer_.inputs({*name, matrix, n_matrices, rows.dim(0), rows.dim(1), rows.as<float>(),
                    rows.strides_bytes[0] / static_cast<int64_t>(sizeof(float))});
}

Tensor WeightTap::scratch(std::vector<float>& memory, int64_t n_rows, int64_t width) const {
  memory.resize(std::max(memory.size(), static_cast<size_t>(n_rows * width)));
  return Tensor(DType::kF32, {n_rows, width}, memory.data());
}

void WeightTap::multiply(const Tensor& x, const Tensor& weight, const Tensor& out) {
  const Node node{LinearArgs{x, weight, out}};
  backend_.execute({&node, 1});
}

bool WeightTap::run(const Node& node) {
  if (const auto* linear = std::get_if<LinearArgs>(&node.args)) {
    report(linear->weight, linear->x);
  } else if (const auto* grouped = std::get_if<GroupedLinearArgs>(&node.args)) {
    const int64_t n_groups = grouped->n_groups();  // groups' rows of the matrix have the same columns
    report(grouped->weight, grouped->x.reshaped({grouped->x.dim(0) * n_groups, grouped->weight.dim(1)}));
  } else if (const auto* attention = std::get_if<LatentAttentionArgs>(&node.args)) {
    look_at(*attention);
  } else if (const auto* ffn = std::get_if<GatedFfnArgs>(&node.args)) {
    run_ffn(*ffn);
    return true;
  } else if (const auto* moe = std::get_if<MoeFfnArgs>(&node.args)) {
    run_moe(*moe);
    return true;
  }
  return false;
}

/// The output rows of expert `expert_idx` of a stack, or of a plain network.
Tensor WeightTap::expert(const Tensor& x, const GatedFfnWeights& stack, int64_t expert_idx, float clamp) {
  const bool is_plain = expert_idx == kPlainMatrix;
  const int64_t matrix = is_plain ? 0 : expert_idx, n_matrices = is_plain ? 1 : stack.gate.dim(0);
  const Tensor gate = is_plain ? stack.gate : stack.gate.slab(expert_idx),
               up = is_plain ? stack.up : stack.up.slab(expert_idx);
  const Tensor down = is_plain ? stack.down : stack.down.slab(expert_idx);
  report(stack.gate, x, matrix, n_matrices);
  report(stack.up, x, matrix, n_matrices);
  const Tensor hidden = scratch(hidden_, x.dim(0), gate.dim(0)), ups = scratch(up_, x.dim(0), up.dim(0));
  multiply(x, gate, hidden);
  multiply(x, up, ups);
  float* h = hidden.as<float>();
  const float* u = ups.as<float>();
  for (int64_t i = 0; i < hidden.shape.n_elements(); ++i) {
    const float g = std::min(h[i], clamp);
    h[i] = g / (1.0F + std::exp(-g)) * std::clamp(u[i], -clamp, clamp);
  }
  report(stack.down, hidden, matrix, n_matrices);
  const Tensor out = scratch(output_, x.dim(0), down.dim(0));
  multiply(hidden, down, out);
  return out;
}

void WeightTap::run_ffn(const GatedFfnArgs& a) {
  const Tensor y = expert(a.x, a.weights, kPlainMatrix, a.clamp);
  for (int64_t t = 0; t < y.dim(0); ++t) std::copy_n(y.row_as<float>(t), y.dim(1), a.out.row_as<float>(t));
}

void WeightTap::run_moe(const MoeFfnArgs& a) {
  const int64_t n_tokens = a.x.dim(0), n_used = a.expert_ids.dim(1), n_experts = a.experts.gate.dim(0),
                hidden_size = a.x.dim(1);
  for (int64_t t = 0; t < n_tokens; ++t) std::fill_n(a.out.row_as<float>(t), hidden_size, 0.0F);
  std::vector<std::vector<std::pair<int64_t, float>>> chosen_by(
      static_cast<size_t>(n_experts));  // token, router weight
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t k = 0; k < n_used; ++k)
      chosen_by[static_cast<size_t>(a.expert_ids.row_as<int32_t>(t)[k])].emplace_back(
          t, a.expert_weights.row_as<float>(t)[k]);
  }
  const std::string* down_name = name_of(a.experts.down);
  std::vector<float> router_weights;
  for (int64_t e = 0; e < n_experts; ++e) {
    const auto& routes = chosen_by[static_cast<size_t>(e)];
    if (routes.empty()) continue;
    const int64_t n = static_cast<int64_t>(routes.size());
    const Tensor x = scratch(gathered_, n, hidden_size);
    router_weights.clear();
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(a.x.row_as<float>(routes[static_cast<size_t>(i)].first), hidden_size, x.row_as<float>(i));
      router_weights.push_back(routes[static_cast<size_t>(i)].second);
    }
    const Tensor y = expert(x, a.experts, e, a.clamp);
    if (down_name != nullptr)
      observer_.expert_outputs({*down_name, e, n_experts, n, hidden_size, y.as<float>(), router_weights.data()});
    for (int64_t i = 0; i < n; ++i) {
      float* out = a.out.row_as<float>(routes[static_cast<size_t>(i)].first);
      const float* from = y.row_as<float>(i);
      for (int64_t d = 0; d < hidden_size; ++d) out[d] += router_weights[static_cast<size_t>(i)] * from[d];
    }
  }
  if (!a.shared.gate) return;
  const Tensor y = expert(a.x, a.shared, kPlainMatrix, a.shared_clamp);
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t d = 0; d < hidden_size; ++d) a.out.row_as<float>(t)[d] += y.row_as<float>(t)[d];
  }
}

/// W_UK meets the queries and W_UV the latents that attention gathered, head by head; kv_b as one matrix, as programs
/// without absorption multiply it, the latents themselves. All three are told, whichever form this file has.
void WeightTap::look_at(const LatentAttentionArgs& a) {
  const std::string* name = name_of(a.kv_b ? a.kv_b : a.k_b);
  if (name == nullptr) return;
  const std::string kv_b = with_ending(*name, "attn_kv_b.weight"), k_b = with_ending(*name, "attn_k_b.weight"),
                    v_b = with_ending(*name, "attn_v_b.weight");
  const int64_t n_tokens = a.q.dim(0), n_heads = a.n_heads(), nope = a.nope_dim(), value = a.value_dim(),
                latent = a.latent_dim();

  for (int64_t h = 0; h < n_heads; ++h) {
    observer_.inputs({k_b, h, n_heads, n_tokens, nope, a.q.as<float>() + h * a.q.dim(2),
                      a.q.strides_bytes[0] / static_cast<int64_t>(sizeof(float))});
  }

  LatentAttentionArgs gather = a;
  if (a.kv_b) {  // W_UK in the form that can stand without W_UV
    keys_.resize(std::max(keys_.size(), static_cast<size_t>(n_heads * latent * nope)));
    std::vector<float> row(static_cast<size_t>(latent));
    for (int64_t h = 0; h < n_heads; ++h) {
      for (int64_t n = 0; n < nope; ++n) {
        dequantize_row(a.kv_b.dtype, a.kv_b.row(h * (nope + value) + n), row.data(), latent);
        for (int64_t c = 0; c < latent; ++c)
          keys_[static_cast<size_t>((h * latent + c) * nope + n)] = row[static_cast<size_t>(c)];
      }
    }
    gather.k_b = Tensor(DType::kF32, {n_heads, latent, nope}, keys_.data());
    gather.kv_b = {};
  }
  if (identity_.size() != static_cast<size_t>(latent * latent)) {
    identity_.assign(static_cast<size_t>(latent * latent), 0.0F);
    for (int64_t c = 0; c < latent; ++c) identity_[static_cast<size_t>(c * latent + c)] = 1.0F;
  }
  gather.v_b = Tensor(DType::kF32, {n_heads, latent, latent}, identity_.data());
  gather.v_b.strides_bytes[0] = 0;  // one matrix for all heads
  gather.out = scratch(latents_, n_tokens, n_heads * latent);
  gather.form = AttentionForm::kAbsorbed;
  const Node node{gather};
  backend_.execute({&node, 1});
  for (int64_t h = 0; h < n_heads; ++h) {
    observer_.inputs({v_b, h, n_heads, n_tokens, latent, gather.out.as<float>() + h * latent, n_heads * latent});
  }

  // The tokens' own latents, as they stand in the cache.
  std::vector<float> own(static_cast<size_t>(n_tokens * latent)), row(static_cast<size_t>(a.cache.dim(2)));
  const Tensor rows = a.cache.reshaped({a.cache.dim(0) * a.cache.dim(1), a.cache.dim(2)});
  for (int64_t t = 0; t < n_tokens; ++t) {
    dequantize_row(rows.dtype, rows.row(a.step.slots.as<int32_t>()[t]), row.data(), a.cache.dim(2));
    std::copy_n(row.data(), latent, own.data() + t * latent);
  }
  observer_.inputs({kv_b, 0, 1, n_tokens, latent, own.data(), latent});
}

}  // namespace fathom
