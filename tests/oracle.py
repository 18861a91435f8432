"""The optimizers once more, in elementary operations and fused multiply-adds.

torch's own kernels contract a multiplication and an addition here and there, and multiply by
rounded betas. So torch.optim is met within a few ulp, and this reference bit for bit. A new rule is
a function here, its row in `RULES`, and its variants in `VARIANTS`. It computes on the CPU, for
numpy does what torch does not round alike everywhere, and leaves the parameters where they are.
"""

import copy
import math
from functools import partial

import numpy as np
import torch

from spectramind_fused.multi_tensor import FIRST_STATE
from spectramind_fused.multi_tensor.storages import (
    AVERAGE_STREAM,
    SLOW_STREAM,
    computed_as,
    is_random,
)
from spectramind_fused.optim import OPTIMIZERS, Options
from spectramind_fused.stepping.rounding import Draw, Place
from spectramind_fused.stepping.storage import (
    EMA_WEIGHTS,
    PARAM,
    SLOW_WEIGHTS,
    begin_master,
    begun,
    read,
    storages_of,
    write,
)
from spectramind_fused.stepping.vectors import dtype_of_vectors
from tests.fma import fma_f32, fma_f64
from tests.inputs import clones
from tests.powers import real_power


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
                m.copy_(beta2 * m + (1 - beta2) * g)


# Of each optimizer our class, and the plain one whose numbers it must have. (Those that step by
# whole matrices have tests of their own, tests/optim/test_muon.py.)
CLASSES = {
    name: (info.cls, info.cls.algorithm.torch_class if info.in_torch else WrittenOutLion)
    for name, info in OPTIMIZERS.items()
    if not info.of_matrices
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
    ("NAdam", {"weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {}),
    # What a state begins with is a 16-bit value here: torch begins with it in float32.
    (
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.25, "maximize": True},
    ),
    ("Adamax", {"eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Adadelta", {"rho": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    # Torch multiplies by a rounded 1 - lambd * eta, which in 20 steps may come to 10 ulp: not by 1.
    ("ASGD", {"lambd": 0.0, "weight_decay": 0.1, "maximize": True}),
    ("ASGD", {"lr": 0.1, "lambd": 0.1, "alpha": 0.4, "t0": 3.0, "weight_decay": 0.1}),
    ("Rprop", {"lr": 0.02}),
    ("Rprop", {"lr": 0.125, "etas": (0.3, 1.4), "step_sizes": (0.02, 0.15), "maximize": True}),
    ("Adafactor", {}),
    (
        "Adafactor",
        {
            "lr": 0.1,
            "beta2_decay": -0.5,
            "eps": (1e-3, 1e-2),
            "d": 1.5,
            "weight_decay": 0.1,
            "maximize": True,
        },
    ),
]

# Entries of a state that are one number for a whole tensor.
NUMBERS = {"step", "mu_product", "eta", "mu"}

RICHEST = dict(VARIANTS)  # of each optimizer the last variant, which has every state
# Between them, every kind of state: with a count and without, with numbers, with one that begins
# at once or away from 0.
KINDS_OF_STATE = {
    kind: RICHEST[kind] for kind in ("AdamW", "SGD", "Adagrad", "NAdam", "ASGD", "Rprop")
}


def name_of(variant):
    return "-".join([variant[0], *(f"{k}={v}".replace(" ", "") for k, v in variant[1].items())])


def fma(a, b, c):
    """a * b + c, rounded once."""
    exact = fma_f64 if c.dtype == torch.float64 else fma_f32
    operands = [t.contiguous().reshape(-1).numpy() for t in torch.broadcast_tensors(a, b, c)]
    result = torch.from_numpy(exact(*operands)).view(c.shape)
    return torch.empty_like(c, memory_format=torch.preserve_format).copy_(result)


def lerp(start, end, weight):
    way = end - start
    return fma(weight, way, start) if weight < 0.5 else fma(weight - 1, way, end)


def next_mean_square(mean, g, weight):
    square = g * g
    finite = mean.isfinite() & square.isfinite()
    torchs = fma(weight * g, g, (1 - weight) * mean)
    return torch.where(finite, lerp(mean, square, weight), torchs)


def next_momentum(buffer, momentum_minus_one, gain):
    return buffer + torch.where(buffer.isfinite(), fma(momentum_minus_one, buffer, gain), gain)


def ieee_sqrt(values):
    """torch.sqrt of CPU tensors is an ulp off for one value in five: MKL's, not IEEE's."""
    return torch.from_numpy(np.sqrt(values.numpy(), out=np.empty_like(values.numpy())))


def torchs_options(kind, options, dtype):
    """What torch is given where it computes 16 bits in float32: an eps of its own it would take.

    Args:
        kind: of optimizer.
        options: of ours.
        dtype: of our parameters.
    """
    return {"eps": (torch.finfo(dtype).eps, 1e-3), **options} if kind == "Adafactor" else options


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_norm(grads):
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


class Reference:
    """The whole step tail for a list of parameters that all take part.

    Unscale, skip, clip; the optimizer's own step; Lookahead; an average of the parameters. In
    whatever everything is stored: rounded by `stepping/rounding.py`, which has tests of its own.
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
        of_storage = {name: options.pop(name) for name in Options._fields[3:] if name in options}
        self.storage_options = Options(**of_storage)
        self.algorithm = CLASSES[kind][0].algorithm
        defaults = CLASSES[kind][1](clones(params), **options).defaults
        self.options = copy.deepcopy(defaults)
        self.steps = 0
        self.held = [p.detach().to("cpu", copy=True) for p in params]
        self.states = [{} for _ in params]
        for p, state in zip(self.held, self.states, strict=True):
            storages = self.storages(p, state)
            begin_master(storages[PARAM], state, p)
            for name, on in ((SLOW_WEIGHTS, self.k), (EMA_WEIGHTS, self.decay is not None)):
                if on:
                    write(name, storages[name], state, p, p.to(compute_dtype(p.dtype)))

    @property
    def slow(self):
        return [state.get(SLOW_WEIGHTS) for state in self.states]

    @property
    def average(self):
        return [state.get(EMA_WEIGHTS) for state in self.states]

    def storages(self, param, state):
        """In what a step leaves everything."""
        group = self.storage_options.entries({})
        return storages_of(self.algorithm.of(param, group), group, param, state)

    def random(self, number, param, stream):
        """The random bits of a slot."""
        draw = Draw(
            self.storage_options.seed, self.steps, Place(number, 0, max(1, param.numel()), 0)
        )
        return draw.bits(stream, param.numel(), param.device)

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
        rows = zip(self.params, self.held, self.states, strict=True)
        for i, (shown, p, state) in enumerate(rows):
            compute = compute_dtype(p.dtype)
            scalar = partial(torch.tensor, dtype=compute, device="cpu")
            algorithm = self.algorithm.of(p, self.options)
            states, vectors = algorithm.states_of(self.options), algorithm.vectors
            wide = {k: v for k, v in state.items() if k in NUMBERS}
            wide |= {name: read(name, state, p) for name in states if begun(state, name)}
            wide |= {name: state[name].to(compute) for name in vectors if name in state}
            self.raw, self.factor_of_raw = shown.grad.to("cpu", compute), scalar(factor)
            self.epsilon = torch.finfo(computed_as(self.storages(p, state)[PARAM])).eps
            g = self.raw * self.factor_of_raw
            new = RULES[self.kind](self, read(PARAM, state, p), g, wide, scalar)
            state |= {k: v for k, v in wide.items() if k in NUMBERS}
            storages = self.storages(p, state)
            group = self.storage_options.entries({})
            state |= {k: wide[k].to(dtype_of_vectors(group, p, state, vectors)) for k in vectors}

            def keep(name, stream, value, i=i, p=p, state=state, storages=storages):
                random = self.random(i, p, stream) if is_random(storages[name]) else None
                write(name, storages[name], state, p, value, random)

            for j, name in enumerate(states):
                keep(name, FIRST_STATE + j, wide[name])
            if self.k and self.steps % self.k == 0:
                slow = read(SLOW_WEIGHTS, state, p)
                new = fma(scalar(self.alpha), new - slow, slow)
                keep(SLOW_WEIGHTS, SLOW_STREAM, new)
            keep(PARAM, 0, new)
            shown.copy_(p)
            if self.decay is not None:
                average = lerp(read(EMA_WEIGHTS, state, p), new, scalar(1 - self.decay))
                keep(EMA_WEIGHTS, AVERAGE_STREAM, average)


# Each takes a parameter, its gradient, its state and what makes a number a tensor; it returns the
# new parameter and leaves the new state.


def apply_step(run, p, step_size, way, scalar, decoupled):
    decay = run.options["lr"] * run.options["weight_decay"] if decoupled else 0
    shrink = scalar(-decay) * p if decay else torch.zeros_like(p)
    return p + fma(step_size, way, shrink)


def adam(run, p, g, state, scalar):
    o = run.options
    beta1, beta2 = o["betas"]
    if o["weight_decay"] and not o["decoupled_weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    zeros = torch.zeros_like(p)
    m = lerp(state.get("exp_avg", zeros), g, scalar(1 - beta1))
    v = next_mean_square(state.get("exp_avg_sq", zeros), g, scalar(1 - beta2))
    state.update(exp_avg=m, exp_avg_sq=v)
    if o["amsgrad"]:
        v = torch.maximum(state.get("max_exp_avg_sq", zeros), v)
        state["max_exp_avg_sq"] = v
    step_size = scalar(-(o["lr"] / (1 - beta1**run.steps)))
    root = scalar((1 - beta2**run.steps) ** 0.5)
    way = m / (ieee_sqrt(v) / root + scalar(o["eps"]))
    return apply_step(run, p, step_size, way, scalar, o["decoupled_weight_decay"])


def sgd(run, p, g, state, scalar):
    o = run.options
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    if o["momentum"]:
        if run.steps == 1:
            buffer = g
        else:
            taken = scalar(1 - o["dampening"]) * g
            buffer = next_momentum(state["momentum_buffer"], scalar(o["momentum"] - 1), taken)
        state["momentum_buffer"] = buffer
        g = fma(scalar(o["momentum"]), buffer, g) if o["nesterov"] else buffer
    return fma(scalar(-o["lr"]), g, p)


def rmsprop(run, p, g, state, scalar):
    o = run.options
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    zeros, weight = torch.zeros_like(p), scalar(1 - o["alpha"])
    v = next_mean_square(state.get("square_avg", zeros), g, weight)
    state["square_avg"] = v
    if o["centered"]:
        mean = state["grad_avg"] = lerp(state.get("grad_avg", zeros), g, weight)
        v = fma(-mean, mean, v)
    way = g / (ieee_sqrt(v) + scalar(o["eps"]))
    if o["momentum"]:
        held = state.get("momentum_buffer", zeros)
        way = next_momentum(held, scalar(o["momentum"] - 1), way)
        state["momentum_buffer"] = way
    return fma(scalar(-o["lr"]), way, p)


def lion(run, p, g, state, scalar):
    o = run.options
    beta1, beta2 = o["betas"]
    m = state.get("exp_avg", torch.zeros_like(p))
    direction = m * scalar(beta1) + scalar(1 - beta1) * g
    state["exp_avg"] = m * scalar(beta2) + scalar(1 - beta2) * g
    return apply_step(run, p, scalar(-o["lr"]), direction.sign(), scalar, True)


def moments(run, p, g, state, scalar):
    """Both means of Adam's kin, and the gradient with its decay."""
    o = run.options
    if o["weight_decay"] and not o["decoupled_weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    zeros, (beta1, beta2) = torch.zeros_like(p), o["betas"]
    m = state["exp_avg"] = lerp(state.get("exp_avg", zeros), g, scalar(1 - beta1))
    v = next_mean_square(state.get("exp_avg_sq", zeros), g, scalar(1 - beta2))
    state["exp_avg_sq"] = v
    return g, m, v


def nadam(run, p, g, state, scalar):
    o, lr, (beta1, beta2) = run.options, run.options["lr"], run.options["betas"]
    g, m, v = moments(run, p, g, state, scalar)
    now, following = (
        beta1 * (1 - 0.5 * real_power(0.96, step * o["momentum_decay"]))
        for step in (run.steps, run.steps + 1)
    )
    kept = state["mu_product"] = state.get("mu_product", torch.ones(())) * now
    product = float(kept)
    correction = scalar(1 - beta2**run.steps)
    of_gradient = scalar(-lr * (1 - now) / (1 - product))
    of_mean = scalar(-lr * following / (1 - product * following))
    way = fma(of_gradient, g, of_mean * m) / (ieee_sqrt(v / correction) + scalar(o["eps"]))
    return apply_step(run, p, scalar(1.0), way, scalar, o["decoupled_weight_decay"])


def radam(run, p, g, state, scalar):
    o, t, (beta1, beta2) = run.options, run.steps, run.options["betas"]
    _, m, v = moments(run, p, g, state, scalar)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    step_size, way = -o["lr"], scalar(1 / (1 - beta1**t)) * m
    if length > 5:
        above = (length - 4) * (length - 2) * longest
        rectified = (above / ((longest - 4) * (longest - 2) * length)) ** 0.5
        step_size *= (1 - beta2**t) ** 0.5 * rectified
        way = way / (ieee_sqrt(v) + scalar(o["eps"]))
    decay = o["lr"] * o["weight_decay"] if o["decoupled_weight_decay"] else 0
    return next_momentum(p, scalar(-decay), scalar(step_size) * way)


def adagrad(run, p, g, state, scalar):
    o = run.options
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    begin = torch.full_like(p, o["initial_accumulator_value"])
    total = state["sum"] = fma(g, g, state.get("sum", begin))
    step_size = scalar(-(o["lr"] / (1 + (run.steps - 1) * o["lr_decay"])))
    return fma(step_size, g / (ieee_sqrt(total) + scalar(o["eps"])), p)


def adamax(run, p, g, state, scalar):
    o, (beta1, beta2) = run.options, run.options["betas"]
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    zeros = torch.zeros_like(p)
    m = state["exp_avg"] = lerp(state.get("exp_avg", zeros), g, scalar(1 - beta1))
    faded = state.get("exp_inf", zeros) * scalar(beta2)
    largest = state["exp_inf"] = torch.maximum(faded, g.abs() + scalar(o["eps"]))
    return fma(scalar(-(o["lr"] / (1 - beta1**run.steps))), m / largest, p)


def adadelta(run, p, g, state, scalar):
    o, zeros = run.options, torch.zeros_like(p)
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    weight, eps = scalar(1 - o["rho"]), scalar(o["eps"])
    square = state["square_avg"] = next_mean_square(state.get("square_avg", zeros), g, weight)
    held = state.get("acc_delta", zeros)
    delta = ieee_sqrt(held + eps) / ieee_sqrt(square + eps) * g
    state["acc_delta"] = next_mean_square(held, delta, weight)
    return fma(scalar(-o["lr"]), delta, p)


def asgd(run, p, g, state, scalar):
    o, t = run.options, run.steps
    if o["weight_decay"]:
        g = fma(scalar(o["weight_decay"]), p, g)
    eta = float(state.get("eta", torch.tensor(o["lr"])))
    mu = float(state.get("mu", torch.ones(())))
    p = next_momentum(p, scalar(-(o["lambd"] * eta)), scalar(-eta) * g)
    state["ax"] = p if mu == 1 else fma(scalar(mu), p - state["ax"], state["ax"])
    grown = real_power(1 + o["lambd"] * o["lr"] * t, o["alpha"])
    state["eta"] = torch.tensor(o["lr"] / grown)
    state["mu"] = torch.tensor(1 / max(1, t - o["t0"]))
    return p


def rprop(run, p, g, state, scalar):
    o, (shrink, grow), (least, most) = run.options, run.options["etas"], run.options["step_sizes"]
    turn = (g * state.get("prev", torch.zeros_like(p))).sign()
    size = state.get("step_size", torch.full_like(p, o["lr"]))
    size = size * torch.where(turn > 0, scalar(grow), torch.where(turn < 0, scalar(shrink), 1))
    size = state["step_size"] = size.clamp(scalar(least), scalar(most))
    prev = state["prev"] = torch.where(turn < 0, 0, g)
    return fma(-prev.sign(), size, p)


def sum_of_squares(values, dim=None):
    """In float64; of float64 exact, and rounded once."""
    if dim is None:
        return sum_of_squares(values.reshape(1, -1), -1).reshape(())
    if values.dtype == torch.float32 or not values.isfinite().all() or not values.numel():
        return values.double().square().sum(dim, keepdim=True)
    rows = values.movedim(dim, -1)
    square = rows * rows
    lost = fma(rows, rows, -square)
    both = torch.cat([square, lost], -1)
    sums = [math.fsum(row) for row in both.reshape(-1, both.shape[-1]).tolist()]
    return torch.tensor(sums, dtype=torch.float64).view(*rows.shape[:-1], 1).movedim(-1, dim)


def adafactor(run, p, g, state, scalar):
    o, t, (eps1, eps2) = run.options, float(run.steps), run.options["eps"]
    eps1 = run.epsilon if eps1 is None else eps1
    weight, factor = scalar(real_power(t, o["beta2_decay"])), run.factor_of_raw.double()
    if p.dim() > 1:
        for name, dim in (("row_var", -1), ("col_var", -2)):
            mean = (sum_of_squares(run.raw, dim) * (factor * factor) / max(1, p.shape[dim])).to(
                p.dtype
            )
            state[name] = lerp(state.get(name, torch.zeros_like(mean)), mean, weight)
        rows = state["row_var"]
        plain = p.dtype == torch.float32 or not p.numel()
        exact = rows.double().sum(-2, keepdim=True) if plain else sums_of(rows)
        mean = (exact / max(1, rows.shape[-2])).to(p.dtype)
        second = rows / mean.clamp(min=scalar(eps1)) * state["col_var"]
    else:
        held = state.get("variance", torch.zeros_like(p))
        second = state["variance"] = lerp(held, g * g, weight)
    way = g / ieee_sqrt(second.clamp(min=scalar(eps1 * eps1)))
    size, excess = (float(sum_of_squares(x) / max(1, x.numel())) ** 0.5 for x in (p, way))
    length = max(eps2, size) * min(o["lr"], 1 / t**0.5) / max(1.0, excess / o["d"])
    return apply_step(run, p, scalar(-length), way, scalar, True)


def sums_of(rows):
    """Of each matrix, exact and rounded once."""
    columns = rows.movedim(-2, -1)
    sums = [math.fsum(column) for column in columns.reshape(-1, columns.shape[-1]).tolist()]
    return torch.tensor(sums, dtype=torch.float64).view(*columns.shape[:-1], 1).movedim(-1, -2)


RULES = {
    "Adam": adam, "AdamW": adam, "SGD": sgd, "RMSprop": rmsprop, "Lion": lion, "NAdam": nadam,
    "RAdam": radam, "Adagrad": adagrad, "Adamax": adamax, "Adadelta": adadelta, "ASGD": asgd,
    "Rprop": rprop, "Adafactor": adafactor,
}  # fmt: skip
