"""Muon: momentum whose update is made orthogonal, for matrices (https://kellerjordan.github.io/posts/muon/)."""
import torch


def orthogonal(g, low):
    """Newton-Schulz iteration on a stack of matrices, five steps, in the precision `low`."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(low)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        A = x @ x.transpose(-1, -2)
        x = a * x + (b * A + c * (A @ A)) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Muon:
    def __init__(self, params, low, momentum=0.95):
        self.params, self.low, self.momentum = list(params), low, momentum
        self.buffers = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, lr):
        for p, b in zip(self.params, self.buffers):
            b.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(b, self.momentum)
            s = g.shape
            if getattr(p, "pair", False):  # gate and up lie in one parameter and are two matrices
                g = g.view(*s[:-2], 2, s[-2] // 2, s[-1])
            u = orthogonal(g, self.low)
            p.add_((u * max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5).view(s), alpha=-lr)
            p.grad = None


def split_parameters(model):
    """Matrices for Muon; embedding, head, norms and router for AdamW."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        p.pair = "gate_up" in name
        (matrices if p.dim() >= 2 and name not in ("embed", "head") and "router" not in name else rest).append(p)
    return matrices, rest
