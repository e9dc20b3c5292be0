#include "core/node.h"

namespace fathom {

std::string_view op_name(const Node& node) {
  constexpr std::string_view kNames[] = {"embed_rows",
                                         "take_rows",
                                         "concat_rows",
                                         "add",
                                         "rms_norm",
                                         "linear",
                                         "rope_table",
                                         "rotate_heads",
                                         "store_latent",
                                         "store_key_value",
                                         "latent_attention",
                                         "multi_head_attention",
                                         "route_experts",
                                         "gated_ffn",
                                         "moe_ffn",
                                         "layer_norm",
                                         "store_rows",
                                         "index_rows",
                                         "grouped_linear",
                                         "collapse_streams",
                                         "expand_streams",
                                         "compress_rows",
                                         "compressed_attention"};
  static_assert(std::size(kNames) == std::variant_size_v<NodeArgs>);
  return kNames[node.args.index()];
}

}  // namespace fathom
