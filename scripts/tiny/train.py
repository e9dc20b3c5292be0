#!/usr/bin/env python3
"""Train the model on the documents of generator/, on a CPU or a GPU.

  train.py tokenizer --dir RUN                          the byte-level BPE tokenizer, RUN/tokenizer.json
  train.py data --dir RUN --shards 16 --seed 500        rows of tokens, RUN/shard_*.npy and held-out RUN/test_*.npy
  train.py train --dir RUN --tokens 8e6                 train; goes on from RUN/checkpoint.pt where there is one

With --tokens the run repeats: the same seed, data and thread count give the same weights (on a CPU bit for bit). --until HH:MM lets the clock
decide instead: the learning rate reaches zero then, whatever the machine managed."""
import argparse
import contextlib
import datetime
import os
import re
import signal
import time

import numpy as np
import torch

import data
import generator as G
import hf
from model import CONFIG, Model, MoE
from muon import Muon, split_parameters

# Digits first, one by one: no merge crosses a digit. Then DeepSeek-V3's rules.
V3_SPLITS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
             "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
             "\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
FIRST = [G.BOS, G.EOS, "<｜▁pad▁｜>"]
LAST = ["<think>", "</think>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", G.USER, G.ASSISTANT, "<|EOT|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"]


def make_tokenizer(folder, size, seed, documents):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as P
    tok = Tokenizer(models.BPE())
    splits = [P.Split(Regex(x), "isolated") for x in V3_SPLITS]
    byte_level = lambda: P.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = P.Sequence([P.Digits(individual_digits=True)] + splits + [byte_level()])
    tok.decoder = decoders.ByteLevel()
    special = re.compile("|".join(map(re.escape, FIRST + LAST)))

    def texts():
        stream = G.stream(seed)
        for _ in range(documents):
            yield from (x for x in special.split(G.plain(next(stream))) if x)
    tok.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=size - len(LAST), min_frequency=2, special_tokens=FIRST,
                                                       initial_alphabet=P.ByteLevel.alphabet(), show_progress=False))
    n = tok.get_vocab_size()
    tok.pre_tokenizer = P.Sequence(splits + [byte_level()])
    pads = [f"<｜place▁holder▁no▁{i}｜>" for i in range(-(n + len(LAST)) % 32)]
    # As in DeepSeek's own: the marks of thinking are text that a reader may see, all others control.
    tok.add_tokens([AddedToken(t, special="think>" not in t, normalized=False) for t in pads + LAST])
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    print("vocabulary", tok.get_vocab_size(), "placeholders", len(pads))


@torch.no_grad()
def held_out(m, folder, device="cpu"):
    """Mean loss per learned token (all tokens alike) of the held-out rows: next token, and the MTP block's."""
    was, out = m.training, {}
    m.eval()
    for kind in ("story", "chat"):
        a = torch.from_numpy(np.load(os.path.join(folder, f"test_{kind}.npy")).astype(np.int64)).to(device)
        r = [m(a[i:i + 8], 8, heavy=1.0) for i in range(0, len(a), 8)]
        out[kind] = sum(x[0].item() for x in r) / len(r)
        out[kind + "_mtp"] = sum(x[1].item() for x in r) / len(r)
    m.train(was)
    return out


class Schedule:
    """Warm-up, constant, then linear to zero over the last `decay` of the run. Progress is counted in tokens or by the clock."""
    def __init__(self, a):
        self.a = a

    def progress(self, tokens, begun):
        if not self.a.until:
            return tokens / self.a.tokens
        end = datetime.datetime.combine(datetime.datetime.fromtimestamp(begun).date(), datetime.time.fromisoformat(self.a.until))
        if end.timestamp() <= begun:
            end += datetime.timedelta(days=1)
        return (time.time() - begun) / (end.timestamp() - begun)

    def factor(self, progress, step):
        return min(1.0, (step + 1) / self.a.warmup) * max(0.0, min(1.0, (1 - progress) / self.a.decay))


class Run:
    """Model, optimizers, the running mean of the weights (which is what is exported) and where the run stands."""
    def __init__(self, a, device):
        c = dict(CONFIG, vocab_size=data.load_tokenizer(a.dir).get_vocab_size())
        self.path = os.path.join(a.dir, "checkpoint.pt")
        self.model = Model(c)
        if a.init and not os.path.exists(self.path):
            self.model.load_state_dict(hf.load(a.init).state_dict())
            print("weights of", a.init, flush=True)
        self.model.to(device)
        matrices, self.rest = split_parameters(self.model)
        self.muon = Muon(matrices, torch.bfloat16 if a.bf16 else torch.float32)
        self.adam = torch.optim.AdamW(self.rest, lr=1, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
        self.step, self.tokens, self.begun, self.log = 0, 0, time.time(), []
        self.mean = {k: v.clone() for k, v in self.model.state_dict().items()}
        if os.path.exists(self.path):
            s = torch.load(self.path, weights_only=False, map_location=device)
            self.model.load_state_dict(s["model"])
            self.adam.load_state_dict(s["adam"])
            for b, x in zip(self.muon.buffers, s["muon"]):
                b.copy_(x)
            self.mean, self.step, self.tokens, self.begun, self.log = s["mean"], s["step"], s["tokens"], s["begun"], s["log"]
            print("goes on after step", self.step, flush=True)

    def save(self):
        torch.save(dict(model=self.model.state_dict(), mean=self.mean, adam=self.adam.state_dict(), muon=self.muon.buffers, step=self.step, tokens=self.tokens,
                        begun=self.begun, log=self.log, config=self.model.c), self.path + ".part")
        os.replace(self.path + ".part", self.path)

    @torch.no_grad()
    def update_mean(self, horizon):
        """The mean over about the last `horizon` steps, shorter at the begin."""
        f = 1 / min(horizon, self.step + 1)
        for k, v in self.model.state_dict().items():
            self.mean[k].lerp_(v, f)

    def held_out(self, folder, device):
        """Of the mean weights."""
        now = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        e = held_out(self.model, folder, device)
        self.model.load_state_dict(now)
        self.log.append((self.step, self.tokens, e))
        print("held out", " ".join(f"{k} {v:.4f}" for k, v in e.items()), flush=True)


def train(a):
    torch.manual_seed(a.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if a.threads:
        torch.set_num_threads(a.threads)
    run, schedule = Run(a, device), Schedule(a)
    m = run.model
    moes = [x for x in m.modules() if isinstance(x, MoE)]
    print(f"{sum(p.numel() for p in m.parameters())} parameters on {device}", flush=True)
    low = torch.autocast(device, torch.bfloat16) if a.bf16 else contextlib.nullcontext()
    batches = data.batches(a.dir, a.batch, run.step)
    smooth, since, saved, shown = None, time.time(), time.time(), run.tokens
    stop = []
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: stop.append(True))
    while (progress := schedule.progress(run.tokens, run.begun)) < 1:
        if stop:  # asked to end
            run.save()
            raise SystemExit("stopped and saved; the same command goes on from here")
        f = schedule.factor(progress, run.step)
        row = torch.from_numpy(next(batches)).to(device)
        with low:
            main, mtp = m(row, a.mtp_rows)
        (main + a.mtp_weight * mtp if mtp is not None else main).backward()
        norm = torch.nn.utils.clip_grad_norm_(m.parameters(), a.clip)
        for g in run.adam.param_groups:
            g["lr"] = a.lr * f
        run.adam.step()
        run.muon.step(a.muon_lr * f)
        run.adam.zero_grad(set_to_none=True)
        for x in moes:  # no auxiliary loss: the bias of an expert that had too much falls, of one that had too little rises
            x.bias += a.balance * min(1.0, 2 * f) * torch.sign(x.load.mean() - x.load)
        run.step += 1
        run.tokens += a.batch * (data.ROW - 1)
        run.update_mean(a.horizon)
        smooth = main.item() if smooth is None else 0.98 * smooth + 0.02 * main.item()
        if run.step % 20 == 0:
            worst = max((x.load.max() / x.load.mean()).item() for x in moes)
            print(f"step {run.step} tokens {run.tokens / 1e6:.3f}M loss {smooth:.4f} mtp {mtp.item() if mtp is not None else 0:.3f} norm {norm:.2f} lr {f:.3f} "
                  f"tok/s {(run.tokens - shown) / (time.time() - since):.0f} fullest expert {worst:.2f}", flush=True)
            since, shown = time.time(), run.tokens
        for x in moes:
            x.load.zero_()
        if run.step % a.eval_every == 0:
            run.held_out(a.dir, device)
        if time.time() - saved > a.save_every:
            run.save()
            saved = time.time()
    run.held_out(a.dir, device)
    run.save()
    print("done:", run.step, "steps,", run.tokens, "tokens")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["tokenizer", "data", "train"])
    ap.add_argument("--dir", required=True, help="folder of the run")
    ap.add_argument("--seed", type=int, default=500)
    ap.add_argument("--vocab", type=int, default=4096)
    ap.add_argument("--documents", type=int, default=60000, help="that the tokenizer is made of")
    ap.add_argument("--shards", type=int, default=16, help="of 448,000 tokens each")
    ap.add_argument("--first-shards", type=int, default=4, help="shards that teach copying: for a model that starts from nothing")
    ap.add_argument("--processes", type=int, default=1, help="that make data")
    ap.add_argument("--init", help="a Hugging Face folder to start from (with its tokenizer.json in --dir)")
    ap.add_argument("--tokens", type=float, default=8e6)
    ap.add_argument("--until", help="HH:MM")
    ap.add_argument("--batch", type=int, default=6, help="rows of 448 tokens a step")
    ap.add_argument("--mtp-rows", type=int, default=1)
    ap.add_argument("--mtp-weight", type=float, default=0.3)
    ap.add_argument("--lr", type=float, default=3e-3, help="of AdamW")
    ap.add_argument("--muon-lr", type=float, default=0.014)
    ap.add_argument("--clip", type=float, default=1.0)
    ap.add_argument("--warmup", type=int, default=60, help="steps")
    ap.add_argument("--decay", type=float, default=0.8, help="part of the run in which the learning rate falls")
    ap.add_argument("--balance", type=float, default=0.002)
    ap.add_argument("--horizon", type=int, default=100, help="steps of the running mean")
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--bf16", action="store_true", help="matrix products in bfloat16 (weights stay float32)")
    ap.add_argument("--eval-every", type=int, default=300, help="steps")
    ap.add_argument("--save-every", type=int, default=180, help="seconds")
    a = ap.parse_args()
    if a.what == "tokenizer":
        make_tokenizer(a.dir, a.vocab, a.seed, a.documents)
    elif a.what == "data":
        data.write(a.dir, a.shards, a.first_shards, a.seed, a.processes)
    else:
        train(a)
