#!/usr/bin/env python3
"""Gives a trained model a vocabulary for texts that the generator has learned since: entries that no document needs any more make room for new merges.

  change_vocabulary.py --hf HF --out HF2 --count 500

Old merges keep their order and new ones come after them, so a text without the new pairs has the tokens that it had. A new entry begins as the mean of
what it is made of and, for a word, of the same word after a space, which the model knows."""
import argparse
import collections
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import generator as G

NEW_KINDS = dict(tool_chat=4000, quoting=24000, chat=4000)  # the documents whose pairs are counted
SPACE = "Ġ"


def documents(seed, counts):
    for kind, count in counts.items():
        stream = G.stream(seed, kind=kind)
        yield from (G.plain(next(stream)) for _ in range(count))


def unused(tok, model, texts):
    """Merged entries that the texts need at most once, whole or as a part; those that no other entry is made of come first."""
    used = collections.Counter()
    for e in tok.encode_batch(texts, add_special_tokens=False):
        used.update(e.tokens)
    merges = [tuple(m) for m in model["merges"]]
    parts, found = collections.Counter(p for m in merges for p in m), []
    made = {"".join(m): m for m in merges}
    waiting = [t for t in reversed(made) if used[t] < 2]
    while True:
        free = [t for t in waiting if not parts[t]]
        if not free:
            return found
        for t in free:
            found.append(t)
            parts.subtract(made[t])
        waiting = [t for t in waiting if t not in set(free)]


def new_merges(tok, special, texts, count):
    """The most frequent neighbours, then again with those merged; digits stay single."""
    words = collections.Counter()
    for e in tok.encode_batch(texts, add_special_tokens=False):
        last, word = None, []
        for token, w in zip(e.tokens, e.word_ids):
            if word and (w != last or w is None):
                words[tuple(word)] += 1
                word = []
            if token not in special:
                word.append(token)
            last = w
        words[tuple(word)] += 1
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for w, n in words.items():
            for p in zip(w, w[1:]):
                if not any(c.isdigit() for c in p[0] + p[1]):
                    pairs[p] += n
        best = pairs.most_common(1)[0][0]
        merges.append(best)
        changed = collections.Counter()
        for w, n in words.items():
            out, i = [], 0
            while i < len(w):
                joined = w[i:i + 2] == best
                out.append(best[0] + best[1] if joined else w[i])
                i += 1 + joined
            changed[tuple(out)] += n
        words = changed
    return merges


def main(a):
    tok = Tokenizer.from_file(os.path.join(a.hf, "tokenizer.json"))
    with open(os.path.join(a.hf, "tokenizer.json"), encoding="utf-8") as f:
        whole = json.load(f)
    model, special = whole["model"], {t["content"] for t in whole["added_tokens"]}
    gone = unused(tok, model, list(documents(a.seed, dict.fromkeys(G.MIX, 10000))))[:a.count]
    added = new_merges(tok, special, list(documents(a.seed, NEW_KINDS)), len(gone))
    ids = {"".join(m): i for m, i in zip(added, (model["vocab"].pop(t) for t in gone))}
    model["merges"] = [m for m in model["merges"] if "".join(m) not in set(gone)] + [list(m) for m in added]
    model["vocab"].update(ids)
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda x: x[1]))
    shutil.copytree(a.hf, a.out, dirs_exist_ok=True)
    with open(os.path.join(a.out, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(whole, f, ensure_ascii=False, indent=2)

    path = os.path.join(a.out, "model.safetensors")
    w, vocab = load_file(path), model["vocab"]
    for m in added:
        t = "".join(m)
        spaced = [vocab[SPACE + t]] if SPACE + t in vocab and t.isalpha() else []
        for name, of in (("model.embed_tokens.weight", [vocab[p] for p in m] if not spaced else []), ("lm_head.weight", [vocab[m[0]]])):
            w[name][ids[t]] = w[name][spaced + of].float().mean(0).to(w[name].dtype)
    save_file(w, path, metadata={"format": "pt"})
    print(len(added), "entries:", " ".join("".join(m) for m in added))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--hf", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--count", type=int, default=500)
    ap.add_argument("--seed", type=int, default=1)
    main(ap.parse_args())
