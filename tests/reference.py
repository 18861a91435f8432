"""The optimizers once more, in elementary torch operations: one rounding for each.

torch's own kernels contract a multiplication and an addition here and there; ours never do.
So torch.optim is met within a few ulp, and this reference bit for bit.
"""

import copy
import math
from functools import partial

import numpy as np
import torch

import spectramind_fused as ours

CLASSES = {
    "Adam": (ours.FusedAdam, torch.optim.Adam),
    "AdamW": (ours.FusedAdamW, torch.optim.AdamW),
    "SGD": (ours.FusedSGD, torch.optim.SGD),
}

# Every rule with every option that changes its arithmetic.
VARIANTS = [
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.1, "maximize": True}),
    ("AdamW", {"amsgrad": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"betas": (0.3, 0.6), "eps": 1e-3}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
]


def name_of(variant):
    return "-".join([variant[0], *(f"{k}={v}".replace(" ", "") for k, v in variant[1].items())])


def awkward_shapes():
    return [(), (0,), (1,), (17,), (1023,), (1025,), (100003,), *[(i % 7 + 1,) for i in range(30)]]


def make_params(shapes, dtype=torch.float32):
    """Parameters of the shapes, and three in layouts that are dense but not contiguous."""
    params = [torch.randn(shape) for shape in shapes]
    params.append(torch.randn(33, 17).t())
    params.append(torch.randn(3, 5, 7, 2).to(memory_format=torch.channels_last))
    params.append(torch.randn(2100)[3:2053])  # starts at an address of 4-byte alignment
    moved = [p.to(dtype) for p in params[:-1]]
    base = params[-1].to(dtype)
    moved.append(torch.cat([base.new_zeros(3), base])[3:])
    return [p.requires_grad_() for p in moved]


def clones(params):
    """Copies with the same strides, alignment aside."""
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def make_grads(params):
    return [torch.randn_like(p) * (1 + i % 3) for i, p in enumerate(params)]


def set_grads(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def give(grads, *lists):
    """Gives each list of parameters its own copy of the gradients."""
    for params in lists:
        set_grads(params, [g.to(p.dtype) for g, p in zip(grads, params, strict=True)])


def lerp(start, end, weight):
    way = end - start
    return start + weight * way if weight < 0.5 else end - way * (1 - weight)


def ieee_sqrt(values):
    """torch.sqrt of CPU tensors is an ulp off for one value in five: MKL's, not IEEE's."""
    return torch.from_numpy(np.sqrt(values.numpy(), out=np.empty_like(values.numpy())))


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_norm(grads):
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


class Reference:
    """The whole step tail for a list of parameters that all take part.

    Unscale, skip, clip; Adam, AdamW or SGD; Lookahead; an average of the parameters.
    """

    def __init__(
        self,
        kind,
        params,
        lookahead_k=0,
        lookahead_alpha=0.5,
        ema_decay=None,
        clip_grad_norm=None,
        **options,
    ):
        self.kind = kind
        self.params = params
        self.k, self.alpha, self.decay = lookahead_k, lookahead_alpha, ema_decay
        self.max_norm = clip_grad_norm
        defaults = CLASSES[kind][1](clones(params), **options).defaults
        self.options = copy.deepcopy(defaults)
        self.steps = 0
        self.slow = [p.detach().clone() for p in params]
        self.average = [p.detach().to(compute_dtype(p.dtype)) for p in clones(params)]
        self.states = [{} for _ in params]

    def factor(self, grad_scale):
        """What each gradient is multiplied by, in float64."""
        if self.max_norm is None:
            return 1 / grad_scale
        norm = total_norm([p.grad for p in self.params]) / grad_scale
        return min(1.0, self.max_norm / (norm + 1e-6)) / grad_scale

    @torch.no_grad()
    def step(self, grad_scale=1.0, skip=False):
        if skip:
            return
        self.steps += 1
        factor = self.factor(grad_scale) * (-1 if self.options["maximize"] else 1)
        for i, (p, slow, state) in enumerate(zip(self.params, self.slow, self.states, strict=True)):
            compute = compute_dtype(p.dtype)
            scalar = partial(torch.tensor, dtype=compute)
            wide = {key: value.to(compute) for key, value in state.items()}
            g = p.grad.to(compute) * scalar(factor)
            rule = self._sgd if self.kind == "SGD" else self._adam
            new = rule(p.to(compute), g, wide, scalar)
            for key, value in wide.items():
                state[key] = value.to(p.dtype)
            if self.k and self.steps % self.k == 0:
                s = slow.to(compute)
                new = s + scalar(self.alpha) * (new - s)
                slow.copy_(new)
            p.copy_(new)
            if self.decay is not None:
                self.average[i] = lerp(self.average[i], new, scalar(1 - self.decay))

    def _adam(self, p, g, state, scalar):
        o = self.options
        beta1, beta2 = o["betas"]
        if o["decoupled_weight_decay"]:
            p = p * scalar(1 - o["lr"] * o["weight_decay"])
        elif o["weight_decay"]:
            g = g + scalar(o["weight_decay"]) * p
        zeros = torch.zeros_like(p)
        m = lerp(state.get("exp_avg", zeros), g, scalar(1 - beta1))
        v = state.get("exp_avg_sq", zeros) * scalar(beta2) + scalar(1 - beta2) * g * g
        state.update(exp_avg=m, exp_avg_sq=v)
        if o["amsgrad"]:
            v = torch.maximum(state.get("max_exp_avg_sq", zeros), v)
            state["max_exp_avg_sq"] = v
        step_size = scalar(-(o["lr"] / (1 - beta1**self.steps)))
        root = scalar((1 - beta2**self.steps) ** 0.5)
        return p + step_size * m / (ieee_sqrt(v) / root + scalar(o["eps"]))

    def _sgd(self, p, g, state, scalar):
        o = self.options
        if o["weight_decay"]:
            g = g + scalar(o["weight_decay"]) * p
        if o["momentum"]:
            if self.steps == 1:
                buffer = g
            else:
                kept = state["momentum_buffer"] * scalar(o["momentum"])
                buffer = kept + scalar(1 - o["dampening"]) * g
            state["momentum_buffer"] = buffer
            g = g + scalar(o["momentum"]) * buffer if o["nesterov"] else buffer
        return p + scalar(-o["lr"]) * g


class Magnitudes:
    """The largest absolute value each element has had: what rounding errors are relative to."""

    def __init__(self):
        self.largest = None

    def see(self, tensors):
        values = [t.detach().double().abs() for t in tensors]
        old = self.largest or values
        self.largest = [torch.maximum(a, b) for a, b in zip(old, values, strict=True)]


def assert_within_ulps(actual, expected, magnitudes, ulps):
    """Every element within `ulps` units in the last place of the largest value it has had."""
    for a, e, largest in zip(actual, expected, magnitudes, strict=True):
        unit = torch.finfo(a.dtype).eps * largest.clamp_min(torch.finfo(a.dtype).tiny)
        error = ((a.detach().double() - e.detach().double()).abs() / unit).max() if e.numel() else 0
        assert error <= ulps, f"{float(error):.1f} ulp off in a tensor of shape {tuple(e.shape)}"


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), e.detach(), rtol=0, atol=0, equal_nan=True)
