"""The DeepSeek-V3 architecture in PyTorch, small: MLA, one dense layer, then experts chosen by group, and one MTP block."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import ONLY_READ, TOKEN, WEIGHTY

CONFIG = dict(vocab_size=4096, hidden_size=256, num_hidden_layers=5, first_k_dense_replace=1, num_attention_heads=4, q_lora_rank=96, kv_lora_rank=64,
              qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, intermediate_size=512, moe_intermediate_size=64, n_routed_experts=16,
              num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=1, routed_scaling_factor=2.5, rms_norm_eps=1e-6, rope_theta=10000.0,
              max_position_embeddings=4096, num_nextn_predict_layers=1,
              rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=512, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0))
HEAVY_WEIGHT = 3.0  # of a target that has one right form; all others count 1


def yarn(c, n):
    """Cosines and sines [n, rope / 2] of the first n positions."""
    s, d = c["rope_scaling"], c["qk_rope_head_dim"]
    f = c["rope_theta"] ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    corr = lambda turns: d * math.log(s["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(c["rope_theta"]))
    low, high = max(math.floor(corr(s["beta_fast"])), 0), min(math.ceil(corr(s["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low if high > low else 0.001)).clamp(0, 1)
    a = torch.arange(n, dtype=torch.float64)[:, None] * (f / s["factor"] * ramp + f * (1 - ramp))
    return a.cos().float(), a.sin().float()


def softmax_scale(c):
    m = 0.1 * c["rope_scaling"]["mscale_all_dim"] * math.log(c["rope_scaling"]["factor"]) + 1
    return (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * m * m


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


def linear(i, o, gain=1.0):
    w = nn.Linear(i, o, bias=False)
    nn.init.normal_(w.weight, std=gain * i ** -0.5)
    return w


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.h = c["hidden_size"], c["num_attention_heads"]
        self.dn, self.dr, self.dv, self.dc = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        self.q_a, self.q_norm = linear(d, c["q_lora_rank"]), Norm(c["q_lora_rank"])
        self.q_b = linear(c["q_lora_rank"], self.h * (self.dn + self.dr))
        self.kv_a, self.kv_norm = linear(d, self.dc + self.dr), Norm(self.dc)
        self.kv_b = linear(self.dc, self.h * (self.dn + self.dv))
        self.o = linear(self.h * self.dv, d, (2 * c["num_hidden_layers"]) ** -0.5)
        self.scale = softmax_scale(c)

    def forward(self, x, cos, sin, mask=None):
        B, T, _ = x.shape
        q = self.q_b(self.q_norm(self.q_a(x))).view(B, T, self.h, self.dn + self.dr)
        c, kr = self.kv_a(x).split([self.dc, self.dr], -1)
        kv = self.kv_b(self.kv_norm(c)).view(B, T, self.h, self.dn + self.dv)

        def rotated(y):  # adjacent pairs
            a, b = y[..., 0::2], y[..., 1::2]
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(y.dtype)
        q = torch.cat((q[..., :self.dn], rotated(q[..., self.dn:])), -1)
        k = torch.cat((kv[..., :self.dn], rotated(kr[:, :, None]).expand(B, T, self.h, self.dr)), -1)
        v = F.pad(kv[..., self.dn:], (0, self.dn + self.dr - self.dv))  # equal widths take the fast kernel
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if mask is None else mask.to(q.dtype), is_causal=mask is None, scale=self.scale)
        return self.o(o[..., :self.dv].transpose(1, 2).reshape(B, T, self.h * self.dv))


class MLP(nn.Module):
    def __init__(self, d, m, c):
        super().__init__()
        self.gate_up, self.down, self.m = linear(d, 2 * m), linear(m, d, (2 * c["num_hidden_layers"]) ** -0.5), m

    def forward(self, x):
        g, u = self.gate_up(x).split(self.m, -1)
        return self.down(F.silu(g) * u)


class Spread(torch.autograd.Function):
    """Rows of x copied to their slots, which are sorted by expert."""
    @staticmethod
    def forward(ctx, x, order, inv, k):
        ctx.inv, ctx.k = inv, k
        return x[order // k]

    @staticmethod
    def backward(ctx, g):
        return g[ctx.inv].view(-1, ctx.k, g.shape[-1]).sum(1), None, None, None


class Gather(torch.autograd.Function):
    """Slots back in token order: [tokens, k, width]."""
    @staticmethod
    def forward(ctx, y, order, inv, k):
        ctx.order = order
        return y[inv].view(-1, k, y.shape[-1])

    @staticmethod
    def backward(ctx, g):
        return g.reshape(-1, g.shape[-1])[ctx.order], None, None, None


class HeadLoss(torch.autograd.Function):
    """Weighted mean cross entropy of h @ head.T, its gradients made in the same pass, a slice of rows at a time: the logits never stand in memory whole."""
    @staticmethod
    def forward(ctx, h, head, target, weight, low):
        with torch.autocast(h.device.type, enabled=False):
            loss, total = 0.0, weight.sum()
            dh, dw, head_low = torch.empty_like(h), torch.zeros_like(head), head.to(low)
            step = 256 if h.device.type == "cpu" else 8192
            for i in range(0, len(target), step):
                x, y, w = h[i:i + step].to(low), target[i:i + step], weight[i:i + step]
                p = torch.softmax((x @ head_low.t()).float(), -1)
                r = torch.arange(len(y), device=h.device)
                loss = loss - (p[r, y].clamp_min(1e-30).log() * w).sum()
                p[r, y] -= 1
                p = (p * w[:, None]).to(low)
                dh[i:i + step] = p @ head_low
                dw += p.t() @ x
            ctx.save_for_backward(dh.div_(total), dw.div_(total))
            return loss / total

    @staticmethod
    def backward(ctx, g):
        dh, dw = ctx.saved_tensors
        return g * dh, g * dw, None, None, None


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, d, m, e = c, c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        self.router = nn.Parameter(torch.randn(e, d) * d ** -0.5)
        self.register_buffer("bias", torch.zeros(e))
        self.register_buffer("load", torch.zeros(e), persistent=False)
        self.gate_up = nn.Parameter(torch.randn(e, 2 * m, d) * d ** -0.5)
        self.down = nn.Parameter(torch.randn(e, d, m) * m ** -0.5 * (2 * c["num_hidden_layers"]) ** -0.5)
        self.shared = MLP(d, m * c["n_shared_experts"], c)
        self.m = m

    def route(self, x):
        """Experts [tokens, k] chosen by score plus bias, and their weights by score alone."""
        c = self.c
        with torch.autocast(x.device.type, enabled=False):
            s = torch.sigmoid(x.float() @ self.router.t())
            with torch.no_grad():
                sel = s + self.bias
                n, e, g = sel.shape[0], sel.shape[1], c["n_group"]
                score = sel.view(n, g, e // g).topk(2, -1)[0].sum(-1)
                keep = torch.zeros_like(score).scatter_(1, score.topk(c["topk_group"], -1)[1], 1.0)
                sel = sel.masked_fill(keep.repeat_interleave(e // g, 1) == 0, float("-inf"))
                idx = sel.topk(c["num_experts_per_tok"], -1)[1]
            w = s.gather(1, idx)
            return idx, w / (w.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]

    def forward(self, x):
        shape, k = x.shape, self.c["num_experts_per_tok"]
        x = x.reshape(-1, shape[-1])
        idx, w = self.route(x)
        flat = idx.reshape(-1)
        order = flat.argsort(stable=True)
        inv = torch.empty_like(order)
        inv[order] = torch.arange(order.numel(), device=order.device)
        count = torch.bincount(flat, minlength=self.c["n_routed_experts"])
        if self.training:
            self.load += count
        count = count.tolist()
        low = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        parts = Spread.apply(x.to(low), order, inv, k).split(count)
        gu = torch.cat([p @ wt.t() for p, wt in zip(parts, self.gate_up.to(low))])
        h = F.silu(gu[:, :self.m]) * gu[:, self.m:]
        y = torch.cat([p @ wt.t() for p, wt in zip(h.split(count), self.down.to(low))])
        y = (w[:, :, None].to(low) * Gather.apply(y, order, inv, k)).sum(1)
        return (y + self.shared(x)).view(shape)


class Block(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.attn_norm, self.attn = Norm(c["hidden_size"]), Attention(c)
        self.ffn_norm = Norm(c["hidden_size"])
        self.ffn = MLP(c["hidden_size"], c["intermediate_size"], c) if dense else MoE(c)

    def forward(self, x, cos, sin, mask=None):
        x = x + self.attn(self.attn_norm(x), cos, sin, mask)
        return x + self.ffn(self.ffn_norm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, d = c, c["hidden_size"]
        self.embed = nn.Parameter(torch.randn(c["vocab_size"], d) * 0.3)
        self.layers = nn.ModuleList(Block(c, i < c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(d)
        self.head = nn.Parameter(torch.randn(c["vocab_size"], d) * d ** -0.5 * 0.3)
        self.enorm, self.hnorm, self.eh = Norm(d), Norm(d), linear(2 * d, d)
        self.mtp, self.mtp_norm = Block(c, False), Norm(d)
        cos, sin = yarn(c, c["max_position_embeddings"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @staticmethod
    def within_documents(ids):
        """A position sees the earlier positions of its own document (documents begin with id 0)."""
        doc = (ids == 0).cumsum(1)
        same = (doc[:, :, None] == doc[:, None, :]).tril_()
        return torch.zeros(same.shape, device=ids.device).masked_fill_(~same, float("-inf"))[:, None]

    def hidden(self, ids, mask=None):
        cos, sin = self.cos[:ids.shape[1], None], self.sin[:ids.shape[1], None]
        x = F.embedding(ids, self.embed)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def mtp_hidden(self, h, following, mask=None):
        """h [B, T, d] after the final norm for t_i; following [B, T] = t_(i+1); the result predicts t_(i+2)."""
        cos, sin = self.cos[:h.shape[1], None], self.sin[:h.shape[1], None]
        x = self.eh(torch.cat((self.enorm(F.embedding(following, self.embed)), self.hnorm(h)), -1))
        return self.mtp_norm(self.mtp(x, cos, sin, mask))

    def loss(self, h, target, heavy):
        """Only positions that are learned go through the head."""
        t = target.reshape(-1)
        keep = (t & ONLY_READ).eq(0).nonzero()[:, 0]
        t = t[keep]
        weight = torch.where((t & WEIGHTY).ne(0), heavy, 1.0)
        low = torch.get_autocast_dtype(h.device.type) if torch.is_autocast_enabled(h.device.type) else h.dtype
        return HeadLoss.apply(h.reshape(-1, h.shape[-1])[keep].float(), self.head, t & TOKEN, weight, low)

    def forward(self, row, mtp_rows=0, heavy=HEAVY_WEIGHT):
        """Losses of the next token and, of the first mtp_rows rows, of the token after it. row [B, T + 1] with the bits of data.py."""
        tok = row & TOKEN
        mask = self.within_documents(tok[:, :-1])
        h = self.hidden(tok[:, :-1], mask)
        main = self.loss(h, row[:, 1:], heavy)
        if not mtp_rows:
            return main, None
        hm = self.mtp_hidden(h[:mtp_rows, :-1], tok[:mtp_rows, 1:-1], mask[:mtp_rows, :, :-1, :-1])
        return main, self.loss(hm, row[:mtp_rows, 2:], heavy)
