"""Between the parameter names of model.py and those of a Hugging Face folder (transformers' DeepseekV3)."""
import json
import os

import torch

from model import CONFIG, Model

ATTENTION = (("q_a", "q_a_proj"), ("q_norm", "q_a_layernorm"), ("q_b", "q_b_proj"), ("kv_a", "kv_a_proj_with_mqa"), ("kv_norm", "kv_a_layernorm"),
             ("kv_b", "kv_b_proj"), ("o", "o_proj"))
MTP = (("enorm.weight", "enorm.weight"), ("hnorm.weight", "hnorm.weight"), ("eh.weight", "eh_proj.weight"), ("mtp_norm.weight", "shared_head.norm.weight"))


def to_hf(w, c):
    """A state dict of Model in bfloat16 under Hugging Face names; the selection bias stays float32."""
    t = {}
    bf = lambda x: x.to(torch.bfloat16).contiguous().clone()

    def mlp(dst, gate_up, down):
        g, u = gate_up.chunk(2, 0)
        t[dst + "gate_proj.weight"], t[dst + "up_proj.weight"], t[dst + "down_proj.weight"] = bf(g), bf(u), bf(down)

    def block(src, dst, dense):
        t[dst + "input_layernorm.weight"] = bf(w[src + "attn_norm.weight"])
        t[dst + "post_attention_layernorm.weight"] = bf(w[src + "ffn_norm.weight"])
        for x, y in ATTENTION:
            t[dst + f"self_attn.{y}.weight"] = bf(w[src + f"attn.{x}.weight"])
        if dense:
            mlp(dst + "mlp.", w[src + "ffn.gate_up.weight"], w[src + "ffn.down.weight"])
            return
        t[dst + "mlp.gate.weight"] = bf(w[src + "ffn.router"])
        t[dst + "mlp.gate.e_score_correction_bias"] = w[src + "ffn.bias"].float().clone()
        for e in range(c["n_routed_experts"]):
            mlp(dst + f"mlp.experts.{e}.", w[src + "ffn.gate_up"][e], w[src + "ffn.down"][e])
        mlp(dst + "mlp.shared_experts.", w[src + "ffn.shared.gate_up.weight"], w[src + "ffn.shared.down.weight"])

    L = c["num_hidden_layers"]
    t["model.embed_tokens.weight"], t["lm_head.weight"], t["model.norm.weight"] = bf(w["embed"]), bf(w["head"]), bf(w["norm.weight"])
    for i in range(L):
        block(f"layers.{i}.", f"model.layers.{i}.", i < c["first_k_dense_replace"])
    p = f"model.layers.{L}."
    block("mtp.", p, False)
    for x, y in MTP:  # its embedding and head are the main model's and not written twice
        t[p + y] = bf(w[x])
    return t


def from_hf(w, c):
    """The reverse, in float32."""
    w, s = {k: v.float() for k, v in w.items()}, {}
    gate_up = lambda p: torch.cat((w[p + "gate_proj.weight"], w[p + "up_proj.weight"]))

    def block(dst, src, dense):
        s[dst + "attn_norm.weight"], s[dst + "ffn_norm.weight"] = w[src + "input_layernorm.weight"], w[src + "post_attention_layernorm.weight"]
        for x, y in ATTENTION:
            s[dst + f"attn.{x}.weight"] = w[src + f"self_attn.{y}.weight"]
        if dense:
            s[dst + "ffn.gate_up.weight"], s[dst + "ffn.down.weight"] = gate_up(src + "mlp."), w[src + "mlp.down_proj.weight"]
            return
        s[dst + "ffn.router"], s[dst + "ffn.bias"] = w[src + "mlp.gate.weight"], w[src + "mlp.gate.e_score_correction_bias"]
        experts = range(c["n_routed_experts"])
        s[dst + "ffn.gate_up"] = torch.stack([gate_up(src + f"mlp.experts.{e}.") for e in experts])
        s[dst + "ffn.down"] = torch.stack([w[src + f"mlp.experts.{e}.down_proj.weight"] for e in experts])
        s[dst + "ffn.shared.gate_up.weight"], s[dst + "ffn.shared.down.weight"] = gate_up(src + "mlp.shared_experts."), w[src + "mlp.shared_experts.down_proj.weight"]

    L = c["num_hidden_layers"]
    s["embed"], s["head"], s["norm.weight"] = w["model.embed_tokens.weight"], w["lm_head.weight"], w["model.norm.weight"]
    for i in range(L):
        block(f"layers.{i}.", f"model.layers.{i}.", i < c["first_k_dense_replace"])
    p = f"model.layers.{L}."
    block("mtp.", p, False)
    for x, y in MTP:
        s[x] = w[p + y]
    return s


def load(folder):
    """The model of a Hugging Face folder."""
    from safetensors.torch import load_file
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    c = {k: config[k] for k in CONFIG}
    m = Model(c)
    m.load_state_dict(from_hf(load_file(os.path.join(folder, "model.safetensors")), c))
    return m.eval()
