#!/usr/bin/env python3
"""Measures a model: what ships by asking the program, what was trained with PyTorch.

  evaluate.py answers --model FILE.gguf [--questions 60]     exact answers for each kind of question, tools, and stories (check_stories.py)
  evaluate.py weights --model FILE.gguf --hf HF --dir RUN    held-out perplexity, routing, acceptance of the MTP block's drafts
  evaluate.py golden --hf HF --out golden.json               greedy text by transformers, which must also agree with model.py

Questions are drawn from held-out combinations. An answer counts if it is the expected text, character by character."""
import argparse
import json
import math
import random

import generator as G
from check_stories import check
from generator.tools import as_messages, choose_tools, exchange, without_tool
from program import FATHOM, Program

FORMS = {"": "</think>", "plain": "", "thinking": "<think>"}  # V3.1 without thinking, V3, V3.1 with thinking
THOUGHT = ("add", "sub", "word_sum")
STARTS = ["Once upon a time", "Once upon a time, there was a little girl named", "The Fox and the Lantern\n\n", "Long ago, in a deep valley,", "Far away, beside a blue lake, lived",
          "Once upon a time, a brave mouse named Pip lived in a land of snow.", "Lily had a red kite.", "Every night, Tom was afraid of the dark.",
          "This is the story of a clever owl", "Once upon a time, there lived a", "Once there was a little robot named", "The old baker looked at the broken clock and"]
CHATS = [[("user", "Hello!")], [("user", "Who are you?")], [("user", "What is 27 + 58?")], [("user", "What is the capital of France?")],
         [("user", "What is the opposite of hot?"), ("assistant", "The opposite of hot is cold."), ("user", "What is the plural of mouse?")],
         [("user", "Tell me a story about a fox and a lantern.")], [("system", "You are a helpful assistant."), ("user", "How many letters are in the word lantern?")],
         [("think", "What is 46 + 37?")]]


def questions(kind, count, seed=77):
    r, found = random.Random(f"{seed}/{kind}"), {}
    for _ in range(count * 4):
        q = G.KIND_OF[kind](r, "test")
        if len(found) < count:
            found.setdefault(q[0], G.plain(q[1]))
    return list(found.items())


def answers(a):
    program = Program(a.model, a.fathom, a.jobs)
    forms = [f for f in FORMS if f in a.forms.split(",")] if a.forms is not None else list(FORMS)
    for form in forms:
        for kind in THOUGHT if form == "thinking" else [k for k in G.KIND_OF if k not in ("story", "talk", "unknown", "name")]:
            qs = questions(kind, a.questions)
            got = program.all([("--raw", G.USER + q + G.ASSISTANT + FORMS[form], "--temp", 0, "-n", 100) for q, _ in qs])
            texts = [g["text"].split("</think>")[-1].strip() for g in got]
            wrong = [(q, w, g["text"]) for (q, w), t, g in zip(qs, texts, got) if t != w]
            name = f"{kind}, {form}" if form else kind
            print(f"{name}: {len(qs) - len(wrong)} of {len(qs)}", *(f"\n    {q} -> {t}" for q, _, t in wrong[:a.show]), flush=True)
    with_tools(program, a.questions, a.show)
    good, count, _ = check(program, a.stories)
    print(f"stories: {good} of {count}")


def called(answer):
    """[(name, arguments)] of an answer; arguments that are no JSON stay text."""
    def arguments(text):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [(c["name"], arguments(c["arguments"])) for c in answer.get("tool_calls", [])]


def with_tools(program, count, show, seed=77):
    """The calls that held-out questions ask for (names and arguments, as JSON), the answers to what the right calls return, and questions without a call."""
    r, cases = random.Random(f"{seed}/tools"), {"tool call": [], "tool answer": [], "no call": [], "no such tool": []}
    for _ in range(count):
        tools = choose_tools(r)
        e = exchange(r, "test", r.choice(tools))
        asked = [("user", e.question)]
        cases["tool call"].append((tools, asked, [(t.name, a) for t, a in e.calls]))
        cases["tool answer"].append((tools, asked + [("calls", e.calls), ("outputs", e.outputs)], e.answer))
        f = G.KIND_OF[r.choice(["capital", "opposite", "colour", "plural", "order", "animal", "copy"])]
        q, a, _, _ = f(r, "test")
        cases["no call"].append((tools, [("user", q)], G.plain(a)))
        q, a = without_tool(r, "test", tools)
        cases["no such tool"].append((tools, [("user", q)], a))
    for name, asked in cases.items():
        got = program.continued([as_messages("", tools, steps) for tools, steps, _ in asked], "--temp", 0, "-n", 100)
        calls = [called(g) for g in got]
        wrong = [(steps[0][1], c or g["text"]) for (_, steps, w), c, g in zip(asked, calls, got) if (c != w if name == "tool call" else c or g["text"] != w)]
        print(f"{name}: {count - len(wrong)} of {count}", *(f"\n    {q} -> {g}" for q, g in wrong[:show]), flush=True)


def encoder(folder):
    import data
    tok = data.load_tokenizer(folder)
    return tok, lambda s: tok.encode(s, add_special_tokens=False).ids


def weights(a):
    import numpy as np
    import torch

    import hf
    from model import MoE
    from train import held_out
    torch.set_num_threads(a.threads)
    m = hf.load(a.hf)
    e = held_out(m, a.dir)
    print("held-out perplexity per learned token:", ", ".join(f"{k} {math.exp(v):.3f}" for k, v in e.items()))
    tok, enc = encoder(a.hf)
    moes = [x for x in m.modules() if isinstance(x, MoE)]
    m.train()
    for kind in ("story", "chat"):
        for x in moes:
            x.load.zero_()
        with torch.no_grad():
            m(torch.from_numpy(np.load(f"{a.dir}/test_{kind}.npy").astype(np.int64)), 24)
        print(f"fullest expert over the mean, {kind}:", " ".join(f"{(x.load.max() / x.load.mean()).item():.2f}" for x in moes))
    m.eval()
    program, hit, n = Program(a.model, a.fathom), 0, 0
    starts = [enc(G.BOS + s) for s in STARTS] + [enc(G.plain(d))[:20] for _, d in zip(range(12), G.stream(31, "test", "story"))]
    with torch.no_grad():
        for s in starts:
            o = program.run("--ids", ",".join(map(str, s)), "-n", 160, "--temp", 0)["tokens"]
            x = torch.tensor([s + o])
            drafts = (m.mtp_hidden(m.hidden(x)[:, :-1], x[:, 1:]) @ m.head.t()).argmax(-1)[0]  # drafts[i] is for t_(i+2)
            right = [int(drafts[i] == x[0, i + 2]) for i in range(len(s) - 1, x.shape[1] - 2)]
            hit, n = hit + sum(right), n + len(right)
    print(f"MTP drafts accepted on greedy stories: {hit} of {n} ({100 * hit / n:.1f} %)")


def golden(a):
    import torch
    from transformers import AutoTokenizer, DeepseekV3ForCausalLM

    import hf
    torch.set_num_threads(a.threads)
    tok, enc = encoder(a.hf)
    ours = hf.load(a.hf)
    reference = DeepseekV3ForCausalLM.from_pretrained(a.hf, dtype=torch.float32, attn_implementation="eager").eval()
    auto = AutoTokenizer.from_pretrained(a.hf)
    worst = 0.0
    with torch.no_grad():
        for _, d in zip(range(6), G.stream(4242, "test")):
            ids = enc(G.plain(d))[:400]
            if auto(G.plain(d), add_special_tokens=False)["input_ids"] != ids:
                raise SystemExit("transformers encodes another way: " + G.plain(d))
            x = torch.tensor([ids])
            worst = max(worst, (reference(x).logits - ours.hidden(x) @ ours.head.t()).abs().max().item())
    print("largest difference of a logit between model.py and transformers:", worst)

    for seed in range(20):  # the chat template writes tools as the generator and the program do
        chat = as_messages(*G.tool_conversation(random.Random(seed)))
        if auto.apply_chat_template(chat["messages"], tools=chat["tools"], tokenize=False) != G.plain(G.tool_chat(random.Random(seed))):
            raise SystemExit(f"the chat template writes conversation {seed} another way")

    def prompt(p):
        if isinstance(p, str):
            return G.BOS + p
        messages = [dict(role="user" if r == "think" else r, content=c) for r, c in p]
        return auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, thinking=p[0][0] == "think")
    cases = []
    for p in STARTS + CHATS:
        text = prompt(p)
        ids = enc(text)
        with torch.no_grad():
            o = reference.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=2)
            whole = reference(o.sequences).logits[0, len(ids) - 1:-1]
        new = o.sequences[0, len(ids):].tolist()
        if whole.argmax(-1).tolist() != new:
            raise SystemExit("with and without a cache differ: " + text)
        pairs = zip((x[0].topk(2).values.tolist() for x in o.logits), whole.topk(2).values.tolist())
        cases.append(dict(prompt=text, prompt_ids=ids, ids=new, text=tok.decode(new, skip_special_tokens=False), margin=[round(min(x - y, u - v), 5) for (x, y), (u, v) in pairs]))
    about = ("Greedy continuations of at most 48 tokens by transformers (f32, the unquantized weights); margin: best logit less the second at each step; "
             "a continuation ends at the end-of-sentence token (id 1).")
    with open(a.out, "w", encoding="utf-8") as f:
        f.write('{"about": ' + json.dumps(about) + ',\n"cases": [\n ' + ",\n ".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]}\n")
    print(len(cases), "cases, smallest margin", min(min(c["margin"]) for c in cases))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["answers", "weights", "golden"])
    ap.add_argument("--model", help="GGUF file")
    ap.add_argument("--hf", help="Hugging Face folder")
    ap.add_argument("--dir", help="folder of the run, for its held-out rows")
    ap.add_argument("--out")
    ap.add_argument("--fathom", default=FATHOM)
    ap.add_argument("--jobs", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--questions", type=int, default=60)
    ap.add_argument("--stories", type=int, default=20)
    ap.add_argument("--forms", help="of the prompt, with commas between: '' (V3.1), plain (V3), thinking; default all")
    ap.add_argument("--show", type=int, default=1, help="wrong answers to print of each kind")
    a = ap.parse_args()
    dict(answers=answers, weights=weights, golden=golden)[a.what](a)
