"""The optimizers once more, in elementary operations and fused multiply-adds.

torch's own kernels contract a multiplication and an addition here and there, and multiply by
rounded betas. So torch.optim is met within a few ulp, and this reference bit for bit.
"""

import copy
import math
from functools import partial

import numpy as np
import torch

import spectramind_fused as ours
from tests.fma import fma_f32, fma_f64


class WrittenOutLion(torch.optim.Optimizer):
    """Lion as Chen et al. (2023) write it down in their appendix; torch.optim has none."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False,
                 foreach=False):  # fmt: skip
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                m = state.setdefault("exp_avg", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * g)
                p.copy_(p - lr * (update + group["weight_decay"] * p))
                state["exp_avg"] = beta2 * m + (1 - beta2) * g


CLASSES = {
    "Adam": (ours.FusedAdam, torch.optim.Adam),
    "AdamW": (ours.FusedAdamW, torch.optim.AdamW),
    "SGD": (ours.FusedSGD, torch.optim.SGD),
    "RMSprop": (ours.FusedRMSprop, torch.optim.RMSprop),
    "Lion": (ours.FusedLion, WrittenOutLion),
}

# conftest.py skips what does not run here.
GPU_KERNELS = ["triton", "cuda"]
KERNELS = ["cpu", *GPU_KERNELS]
BACKENDS = [*KERNELS, "eager"]

# How far off torch's own steps may be after 20 or so, in units of the last place. It multiplies by
# rounded betas and by 1 - lr * weight_decay, a bias that grows: drop_in/test_accuracy.py.
TORCHS_ULPS = 16

RULES = {"Adam": "_adam", "AdamW": "_adam", "SGD": "_sgd", "RMSprop": "_rmsprop", "Lion": "_lion"}

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
    ("RMSprop", {}),
    # RMSprop's first step is g / |g|: an eps that shows, where decay may cancel g to a few bits.
    ("RMSprop", {"lr": 1e-3, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.5, "maximize": True}),
    ("RMSprop", {"centered": True, "eps": 1e-3}),
    (
        "RMSprop",
        {"lr": 1e-3, "eps": 1e-2, "centered": True, "momentum": 0.5, "weight_decay": 0.1},
    ),
    ("Lion", {}),
    ("Lion", {"lr": 0.1, "betas": (0.3, 0.6), "weight_decay": 0.1, "maximize": True}),
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


def fma(a, b, c):
    """a * b + c, rounded once."""
    exact = fma_f64 if c.dtype == torch.float64 else fma_f32
    operands = [t.contiguous().reshape(-1).numpy() for t in torch.broadcast_tensors(a, b, c)]
    result = torch.from_numpy(exact(*operands)).view(c.shape)
    return torch.empty_like(c, memory_format=torch.preserve_format).copy_(result)


def lerp(start, end, weight):
    way = end - start
    return fma(weight, way, start) if weight < 0.5 else fma(weight - 1, way, end)


def gathered(buffer, neg_lose, gain):
    return buffer + torch.where(buffer.isfinite(), fma(neg_lose, buffer, gain), gain)


def ieee_sqrt(values):
    """torch.sqrt of CPU tensors is an ulp off for one value in five: MKL's, not IEEE's."""
    return torch.from_numpy(np.sqrt(values.numpy(), out=np.empty_like(values.numpy())))


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_norm(grads):
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


class Reference:
    """The whole step tail for a list of parameters that all take part.

    Unscale, skip, clip; the optimizer's own step; Lookahead; an average of the parameters.
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
            new = getattr(self, RULES[self.kind])(p.to(compute), g, wide, scalar)
            for key, value in wide.items():
                state[key] = value.to(p.dtype)
            if self.k and self.steps % self.k == 0:
                s = slow.to(compute)
                new = fma(scalar(self.alpha), new - s, s)
                slow.copy_(new)
            p.copy_(new)
            if self.decay is not None:
                self.average[i] = lerp(self.average[i], new, scalar(1 - self.decay))

    def _adam(self, p, g, state, scalar):
        o = self.options
        beta1, beta2 = o["betas"]
        if o["weight_decay"] and not o["decoupled_weight_decay"]:
            g = fma(scalar(o["weight_decay"]), p, g)
        zeros = torch.zeros_like(p)
        m = lerp(state.get("exp_avg", zeros), g, scalar(1 - beta1))
        v = lerp(state.get("exp_avg_sq", zeros), g * g, scalar(1 - beta2))
        state.update(exp_avg=m, exp_avg_sq=v)
        if o["amsgrad"]:
            v = torch.maximum(state.get("max_exp_avg_sq", zeros), v)
            state["max_exp_avg_sq"] = v
        step_size = scalar(-(o["lr"] / (1 - beta1**self.steps)))
        root = scalar((1 - beta2**self.steps) ** 0.5)
        way = m / (ieee_sqrt(v) / root + scalar(o["eps"]))
        return self._stepped(p, step_size, way, scalar, o["decoupled_weight_decay"])

    def _stepped(self, p, step_size, way, scalar, decoupled):
        decay = self.options["lr"] * self.options["weight_decay"] if decoupled else 0
        shrink = scalar(-decay) * p if decay else torch.zeros_like(p)
        return p + fma(step_size, way, shrink)

    def _sgd(self, p, g, state, scalar):
        o = self.options
        if o["weight_decay"]:
            g = fma(scalar(o["weight_decay"]), p, g)
        if o["momentum"]:
            if self.steps == 1:
                buffer = g
            else:
                taken = scalar(1 - o["dampening"]) * g
                buffer = gathered(state["momentum_buffer"], scalar(o["momentum"] - 1), taken)
            state["momentum_buffer"] = buffer
            g = fma(scalar(o["momentum"]), buffer, g) if o["nesterov"] else buffer
        return fma(scalar(-o["lr"]), g, p)

    def _rmsprop(self, p, g, state, scalar):
        o = self.options
        if o["weight_decay"]:
            g = fma(scalar(o["weight_decay"]), p, g)
        zeros, weight = torch.zeros_like(p), scalar(1 - o["alpha"])
        v = lerp(state.get("square_avg", zeros), g * g, weight)
        state["square_avg"] = v
        if o["centered"]:
            mean = state["grad_avg"] = lerp(state.get("grad_avg", zeros), g, weight)
            v = fma(-mean, mean, v)
        way = g / (ieee_sqrt(v) + scalar(o["eps"]))
        if o["momentum"]:
            held = state.get("momentum_buffer", zeros)
            way = gathered(held, scalar(o["momentum"] - 1), way)
            state["momentum_buffer"] = way
        return fma(scalar(-o["lr"]), way, p)

    def _lion(self, p, g, state, scalar):
        o = self.options
        beta1, beta2 = o["betas"]
        m = state.get("exp_avg", torch.zeros_like(p))
        direction = m * scalar(beta1) + scalar(1 - beta1) * g
        state["exp_avg"] = m * scalar(beta2) + scalar(1 - beta2) * g
        return self._stepped(p, scalar(-o["lr"]), direction.sign(), scalar, True)


def train(optimizers_and_params, seed, steps=3):
    """Steps each optimizer by the same gradients."""
    for optimizer, params in optimizers_and_params:
        torch.manual_seed(seed)
        for _ in range(steps):
            set_grads(params, make_grads(params))
            optimizer.step()


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


def close(actual, expected):
    """As far off as torch's rounding explains, relative to the value, or to 1 if that is larger."""
    sizes = [e.detach().double().abs().clamp_min(1.0) for e in expected]
    assert_within_ulps(actual, expected, sizes, TORCHS_ULPS)
