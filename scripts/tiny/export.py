#!/usr/bin/env python3
"""From a checkpoint of train.py to a Hugging Face folder: config.json, model.safetensors (bfloat16), tokenizer files.

  export.py --dir RUN --out HF [--weights mean|last]

GGUF files are then made by the program itself: fathom convert HF -o tiny-q8_0.gguf --type q8_0 --name fathom-tiny"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

import generator as G
import hf
from generator.tools import HEAD, TAIL

# V3.1's layout: a question is answered after <think> if thinking is asked for, else after </think>; earlier answers keep no thoughts; tools are
# told after the system text, and what they return is answered without a turn of its own.
TEMPLATE = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
            "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
            "{% set ns = namespace(system='', first=true, after='') %}"
            "{%- for message in messages %}{%- if message['role'] == 'system' %}"
            "{% set ns.system = ns.system + ('' if ns.first else '\n\n') + message['content'] %}{% set ns.first = false %}{%- endif %}{%- endfor %}"
            "{{ bos_token }}{{ ns.system }}"
            "{%- if tools is defined and tools %}{{ ('' if ns.first else '\n\n') + " + repr(HEAD) + " }}"
            "{%- for tool in tools %}{{ ('' if loop.first else '\n\n') + '### ' + tool['function']['name'] + '\nDescription: ' + tool['function']['description'] + "
            "'\n\nParameters: ' + (tool['function']['parameters'] | tojson) }}{%- endfor %}{{ " + repr(TAIL) + " }}{%- endif %}"
            "{%- for message in messages %}"
            "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% set ns.after = 'user' %}{%- endif %}"
            "{%- if message['role'] == 'assistant' %}"
            "{% set content = message['content'] or '' %}{% if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}{% endif %}"
            "{{ ('<｜Assistant｜></think>' if ns.after == 'user' else '') + content }}"
            "{%- if message['tool_calls'] is defined and message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜>' }}{%- for call in message['tool_calls'] %}"
            "{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments'] + '<｜tool▁call▁end｜>' }}{%- endfor %}"
            "{{ '<｜tool▁calls▁end｜>' }}{%- endif %}{{ '<｜end▁of▁sentence｜>' }}{% set ns.after = 'answer' %}{%- endif %}"
            "{%- if message['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{% set ns.after = 'tool' %}{%- endif %}"
            "{%- endfor %}"
            "{% if add_generation_prompt and ns.after != 'tool' %}{{ '<｜Assistant｜>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}")


def config(c):
    same = ("first_k_dense_replace", "hidden_size", "intermediate_size", "kv_lora_rank", "max_position_embeddings", "moe_intermediate_size", "n_group",
            "n_routed_experts", "n_shared_experts", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "q_lora_rank", "qk_nope_head_dim",
            "qk_rope_head_dim", "rms_norm_eps", "rope_scaling", "rope_theta", "routed_scaling_factor", "topk_group", "v_head_dim", "vocab_size")
    return dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=1,
                pad_token_id=2, ep_size=1, hidden_act="silu", initializer_range=0.02, moe_layer_freq=1, norm_topk_prob=True,
                num_key_value_heads=c["num_attention_heads"], num_nextn_predict_layers=1, scoring_func="sigmoid", tie_word_embeddings=False,
                topk_method="noaux_tc", torch_dtype="bfloat16", use_cache=True, **{k: c[k] for k in same})


def main(a):
    s = torch.load(os.path.join(a.dir, "checkpoint.pt"), weights_only=False, map_location="cpu")
    os.makedirs(a.out, exist_ok=True)
    weights = hf.to_hf(s["mean" if a.weights == "mean" else "model"], s["config"])
    save_file(weights, os.path.join(a.out, "model.safetensors"), metadata={"format": "pt"})

    def dump(name, value):
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)
    dump("config.json", config(s["config"]))
    dump("generation_config.json", dict(bos_token_id=0, eos_token_id=1, do_sample=True, temperature=a.temperature, top_p=a.top_p))
    shutil.copy(os.path.join(a.dir, "tokenizer.json"), a.out)
    added = lambda text: dict(__type="AddedToken", content=text, lstrip=False, normalized=True, rstrip=False, single_word=False)
    dump("tokenizer_config.json", dict(add_bos_token=True, add_eos_token=False, bos_token=added(G.BOS), clean_up_tokenization_spaces=False, eos_token=added(G.EOS),
                                      legacy=True, model_max_length=s["config"]["max_position_embeddings"], pad_token=added("<｜▁pad▁｜>"), sp_model_kwargs={},
                                      unk_token=None, tokenizer_class="LlamaTokenizerFast", chat_template=TEMPLATE))
    print(f"{a.out}: step {s['step']}, {s['tokens']} tokens, {len(weights)} tensors")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--dir", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--weights", choices=["mean", "last"], default="mean", help="the running mean of the weights, or the last ones")
    ap.add_argument("--temperature", type=float, default=0.2)
    ap.add_argument("--top-p", type=float, default=0.95)
    main(ap.parse_args())
