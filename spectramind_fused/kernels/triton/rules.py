"""The arithmetic of each optimizer in Triton, on values already in registers.

A rule is two functions. `<rule>_scalars` runs in `advance`, once per tensor and step, in
float64: hyperparameters, step count and what the rule keeps of a tensor in, the few numbers an
element needs out, and what is kept from now on. `<rule>_update` runs per element in float32.
Operations, their order and every fma are those of csrc/update_rules.h, which says why; with FP
fusion off, so that no other product is contracted, both give the same bits. Variants (AMSGrad, SGD
without momentum) differ in how many states they hold, and where that does not tell them apart
(centered RMSprop) in their name; everything else is a number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from spectramind_fused.kernels.triton.power import power, real_power


@triton.jit
def lerp(start, end, weight):
    """torch.lerp: from the nearer end, so that weight 0 and 1 are exact."""
    distance = end - start
    near_start = tl.fma(weight, distance, start)
    return tl.where(weight < 0.5, near_start, tl.fma(weight - 1.0, distance, end))


@triton.jit
def next_mean_square(mean, g, weight):
    """The mean of g * g, moved as by lerp; where that overflows, by torch's own operations."""
    square = g * g
    finite = tl.abs(square - mean) < float("inf")
    torchs = tl.fma(weight * g, g, (1 - weight) * mean)
    return tl.where(finite, lerp(mean, square, weight), torchs)


@triton.jit
def apply_step(p, neg_decay, neg_step, direction):
    """Decay and step as one addition to p, which is rounded once."""
    decay = tl.where(neg_decay != 0, neg_decay * p, 0.0)
    return p + tl.fma(neg_step, direction, decay)


@triton.jit
def next_momentum(buffer, momentum_minus_one, gain):
    """Momentum * buffer + gain, rounded once; an infinite buffer stays infinite."""
    finite = tl.abs(buffer) < float("inf")
    return buffer + tl.where(finite, tl.fma(momentum_minus_one, buffer, gain), gain)


@triton.jit
def add_l2(g, l2, p):
    """Coupled decay, a part of the gradient."""
    return tl.where(l2 != 0, tl.fma(l2, p, g), g)


@triton.jit
def maximum(a, b):
    """torch.maximum: a NaN on either side wins."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def sign(value):
    """torch.sign: 0 of a NaN."""
    return tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))


@triton.jit
def decay_of(lr, weight_decay, decoupled):
    """Weight decay apart from the gradient, or as a part of it: the one or the other is 0."""
    neg_decay = tl.where(decoupled != 0, -(lr * weight_decay), 0.0)
    return neg_decay, tl.where(decoupled != 0, 0.0, weight_decay)


@triton.jit
def adam_scalars(hyperparameters, step, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyperparameters
    neg_decay, l2 = decay_of(lr, weight_decay, decoupled)
    neg_step = -(lr / (1 - power(beta1, step)))
    root_correction2 = tl.sqrt(1 - power(beta2, step))
    return (neg_decay, l2, 1 - beta1, 1 - beta2, neg_step, root_correction2, eps), numbers


@triton.jit
def adam_update(p, g, states, scalars):
    """Adam, AdamW (decay in place of l2), AMSGrad (a third state)."""
    neg_decay, l2, weight1, weight2, neg_step, root_correction2, eps = scalars
    g = add_l2(g, l2, p)
    exp_avg = lerp(states[0], g, weight1)
    exp_avg_sq = next_mean_square(states[1], g, weight2)
    second = exp_avg_sq
    held = (exp_avg, exp_avg_sq)
    if len(states) == 3:
        second = maximum(states[2], exp_avg_sq)
        held = (exp_avg, exp_avg_sq, second)
    denominator = tl.div_rn(tl.sqrt_rn(second), root_correction2) + eps
    return apply_step(p, neg_decay, neg_step, tl.div_rn(exp_avg, denominator)), held


@triton.jit
def sgd_scalars(hyperparameters, step, numbers):
    lr, momentum, dampening, weight_decay, nesterov = hyperparameters
    first = step == 1  # the first momentum buffer is the undampened gradient
    momentum_minus_one = tl.where(first, -1.0, momentum - 1)
    one_minus_dampening = tl.where(first, 1.0, 1 - dampening)
    scalars = (weight_decay, momentum_minus_one, one_minus_dampening, momentum, nesterov, -lr)
    return scalars, numbers


@triton.jit
def sgd_update(p, g, states, scalars):
    """SGD; one state: with momentum."""
    l2, momentum_minus_one, one_minus_dampening, momentum, nesterov, neg_lr = scalars
    g = add_l2(g, l2, p)
    if len(states) == 1:
        momentum_buffer = next_momentum(states[0], momentum_minus_one, one_minus_dampening * g)
        g = tl.where(nesterov != 0, tl.fma(momentum, momentum_buffer, g), momentum_buffer)
        return tl.fma(neg_lr, g, p), (momentum_buffer,)
    else:
        return tl.fma(neg_lr, g, p), states


@triton.jit
def rmsprop_scalars(hyperparameters, step, numbers):
    lr, alpha, eps, weight_decay, momentum = hyperparameters
    return (weight_decay, 1 - alpha, eps, momentum - 1, -lr), numbers


@triton.jit
def rmsprop_step(p, g, states, scalars, CENTERED: tl.constexpr):
    l2, weight, eps, momentum_minus_one, neg_lr = scalars
    g = add_l2(g, l2, p)
    square_avg = next_mean_square(states[0], g, weight)
    second = square_avg
    held = (square_avg,)
    if CENTERED:
        grad_avg = lerp(states[1], g, weight)
        second = tl.fma(-grad_avg, grad_avg, square_avg)
        held = (square_avg, grad_avg)
    direction = tl.div_rn(g, tl.sqrt_rn(second) + eps)
    if len(states) > len(held):  # with momentum
        direction = next_momentum(states[len(held)], momentum_minus_one, direction)
        held = held + (direction,)
    return tl.fma(neg_lr, direction, p), held


@triton.jit
def rmsprop_update(p, g, states, scalars):
    """RMSprop; a second state: with momentum."""
    return rmsprop_step(p, g, states, scalars, False)


@triton.jit
def centered_rmsprop_update(p, g, states, scalars):
    """Centered RMSprop; a third state: with momentum."""
    return rmsprop_step(p, g, states, scalars, True)


@triton.jit
def lion_scalars(hyperparameters, step, numbers):
    lr, beta1, beta2, weight_decay = hyperparameters
    return (-(lr * weight_decay), beta1, 1 - beta1, beta2, 1 - beta2, -lr), numbers


@triton.jit
def lion_update(p, g, states, scalars):
    """Lion: every element moves by lr."""
    neg_decay, beta1, weight1, beta2, weight2, neg_lr = scalars
    direction = states[0] * beta1 + weight1 * g
    return apply_step(p, neg_decay, neg_lr, sign(direction)), (states[0] * beta2 + weight2 * g,)


@triton.jit
def nadam_mu(beta1, momentum_decay, count):
    return beta1 * (1 - 0.5 * real_power(count * 0 + 0.96, count * momentum_decay))


@triton.jit
def nadam_scalars(hyperparameters, step, numbers):
    lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled = hyperparameters
    neg_decay, l2 = decay_of(lr, weight_decay, decoupled)
    now = nadam_mu(beta1, momentum_decay, step.to(tl.float64))
    following = nadam_mu(beta1, momentum_decay, (step + 1).to(tl.float64))
    kept = numbers[0] * now.to(numbers[0].dtype)  # as torch multiplies it in its place
    product = kept.to(tl.float64)
    of_gradient = -lr * (1 - now) / (1 - product)
    of_mean = -lr * following / (1 - product * following)
    weights = (neg_decay, l2, 1 - beta1, 1 - beta2)
    return weights + (1 - power(beta2, step), eps, of_gradient, of_mean), (kept,)


@triton.jit
def nadam_update(p, g, states, scalars):
    """NAdam: Adam with Nesterov's momentum."""
    neg_decay, l2, weight1, weight2, correction2, eps, of_gradient, of_mean = scalars
    g = add_l2(g, l2, p)
    exp_avg = lerp(states[0], g, weight1)
    exp_avg_sq = next_mean_square(states[1], g, weight2)
    denominator = tl.sqrt_rn(tl.div_rn(exp_avg_sq, correction2)) + eps
    step = tl.div_rn(tl.fma(of_gradient, g, of_mean * exp_avg), denominator)
    return apply_step(p, neg_decay, 1.0, step), (exp_avg, exp_avg_sq)


@triton.jit
def radam_scalars(hyperparameters, step, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyperparameters
    neg_decay, l2 = decay_of(lr, weight_decay, decoupled)
    beta2_power = power(beta2, step)
    correction2 = 1 - beta2_power
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step.to(tl.float64) * beta2_power / correction2
    adaptive = length > 5
    rectified = (length - 4) * (length - 2) * longest
    rectified = rectified / ((longest - 4) * (longest - 2) * length)
    factor = tl.where(adaptive, tl.sqrt(correction2) * tl.sqrt(rectified), 1.0)
    of_mean = 1 / (1 - power(beta1, step))
    weights = (neg_decay, l2, 1 - beta1, 1 - beta2)
    return weights + (of_mean, -(lr * factor), eps, adaptive), numbers


@triton.jit
def radam_update(p, g, states, scalars):
    """RAdam; adaptive: by the mean square, else plain momentum."""
    neg_decay, l2, weight1, weight2, of_mean, neg_step, eps, adaptive = scalars
    g = add_l2(g, l2, p)
    exp_avg = lerp(states[0], g, weight1)
    exp_avg_sq = next_mean_square(states[1], g, weight2)
    denominator = tl.where(adaptive != 0, tl.sqrt_rn(exp_avg_sq) + eps, 1.0)
    step = neg_step * tl.div_rn(of_mean * exp_avg, denominator)
    # An infinite one stays so.
    return next_momentum(p, neg_decay, step), (exp_avg, exp_avg_sq)


@triton.jit
def adagrad_scalars(hyperparameters, step, numbers):
    lr, lr_decay, weight_decay, eps = hyperparameters
    neg_step = -(lr / (1 + (step - 1).to(tl.float64) * lr_decay))
    return (weight_decay, neg_step, eps), numbers


@triton.jit
def adagrad_update(p, g, states, scalars):
    """Adagrad: the sum of all squares."""
    l2, neg_step, eps = scalars
    g = add_l2(g, l2, p)
    total = tl.fma(g, g, states[0])
    return tl.fma(neg_step, tl.div_rn(g, tl.sqrt_rn(total) + eps), p), (total,)


@triton.jit
def adamax_scalars(hyperparameters, step, numbers):
    lr, beta1, beta2, eps, weight_decay = hyperparameters
    neg_step = -(lr / (1 - power(beta1, step)))
    return (weight_decay, 1 - beta1, beta2, neg_step, eps), numbers


@triton.jit
def adamax_update(p, g, states, scalars):
    """Adamax: the largest gradient, which fades."""
    l2, weight1, beta2, neg_step, eps = scalars
    g = add_l2(g, l2, p)
    exp_avg = lerp(states[0], g, weight1)
    exp_inf = maximum(states[1] * beta2, tl.abs(g) + eps)
    return tl.fma(neg_step, tl.div_rn(exp_avg, exp_inf), p), (exp_avg, exp_inf)


@triton.jit
def adadelta_scalars(hyperparameters, step, numbers):
    lr, rho, eps, weight_decay = hyperparameters
    return (weight_decay, 1 - rho, eps, -lr), numbers


@triton.jit
def adadelta_update(p, g, states, scalars):
    """Adadelta: the step's own mean square."""
    l2, weight, eps, neg_lr = scalars
    g = add_l2(g, l2, p)
    square_avg = next_mean_square(states[0], g, weight)
    before = tl.sqrt_rn(states[1] + eps)
    delta = tl.div_rn(before, tl.sqrt_rn(square_avg + eps)) * g
    return tl.fma(neg_lr, delta, p), (square_avg, next_mean_square(states[1], delta, weight))


@triton.jit
def asgd_scalars(hyperparameters, step, numbers):
    lr, lambd, alpha, t0, weight_decay = hyperparameters
    eta = tl.where(step == 1, lr.to(numbers[0].dtype), numbers[0]).to(tl.float64)
    mu = numbers[1].to(tl.float64)
    count = step.to(tl.float64)
    next_eta = lr / real_power(1 + lambd * lr * count, alpha)
    return (weight_decay, -(lambd * eta), -eta, mu), (next_eta, 1 / tl.maximum(count - t0, 1.0))


@triton.jit
def asgd_update(p, g, states, scalars):
    """ASGD: SGD, and an average beside it."""
    l2, neg_decay, neg_eta, mu = scalars
    p = next_momentum(p, neg_decay, neg_eta * add_l2(g, l2, p))  # an infinite one stays so
    return p, (tl.where(mu == 1, p, tl.fma(mu, p - states[0], states[0])),)


@triton.jit
def rprop_scalars(hyperparameters, step, numbers):
    lr, shrink, grow, least, most = hyperparameters
    return (tl.where(step == 1, lr, -1.0), shrink, grow, least, most), numbers


@triton.jit
def rprop_update(p, g, states, scalars):
    """Rprop: each element's step size grows while its gradient keeps its sign."""
    first, shrink, grow, least, most = scalars
    turn = g * states[0]
    size = tl.where(first < 0, states[1], first) * tl.where(
        turn > 0, grow, tl.where(turn < 0, shrink, 1.0)
    )
    size = tl.where(size < least, least, size)
    size = tl.where(size > most, most, size)
    prev = tl.where(turn < 0, 0.0, g)
    return tl.fma(-sign(prev), size, p), (prev, size)


@triton.jit
def muon_momentum_scalars(hyperparameters, step, numbers):
    momentum, nesterov = hyperparameters
    return (1 - momentum, momentum, nesterov), numbers


@triton.jit
def muon_momentum_update(p, g, states, scalars):
    """Muon before the products of matrices: what is to be made orthogonal, in the place of p."""
    weight, momentum, nesterov = scalars
    momentum_buffer = lerp(states[0], g, weight)
    p = tl.where(nesterov != 0, lerp(g, momentum_buffer, momentum), momentum_buffer)
    return p, (momentum_buffer,)


@triton.jit
def muon_scalars(hyperparameters, step, numbers):
    lr, weight_decay, ratio = hyperparameters
    return (-(lr * weight_decay), -(lr * ratio)), numbers


@triton.jit
def muon_update(p, g, states, scalars):
    """Muon after them: g is the orthogonal matrix."""
    neg_decay, neg_step = scalars
    return apply_step(p, neg_decay, neg_step, g), ()


@triton.jit
def adafactor_scalars(hyperparameters, step, numbers):
    lr, beta2_decay, eps1, _, _, weight_decay = hyperparameters
    weight = real_power(step.to(tl.float64), beta2_decay)
    neg_decay = tl.where(weight_decay != 0, -(lr * weight_decay), 0.0)
    return (neg_decay, weight, eps1, eps1 * eps1, eps1 * 0), numbers


@triton.jit
def adafactor_neg_step(hyperparameters, step, direction, p):
    """How far a tensor goes, by the mean squares of its directions and of its elements."""
    lr, _, _, eps2, d, _ = hyperparameters
    size = tl.sqrt(p)
    excess = tl.sqrt(direction) / d
    decayed = 1 / tl.sqrt(step)
    length = tl.where(size > eps2, size, eps2) * tl.where(decayed < lr, decayed, lr)
    return -(length / tl.where(excess > 1, excess, 1.0))


@triton.jit
def adafactor_direction(g, states, scalars):
    """Of a factored tensor; the state is the product of its factors."""
    least = scalars[3]
    return tl.div_rn(g, tl.sqrt_rn(tl.where(states[0] < least, least, states[0]))), states


@triton.jit
def adafactor_update(p, g, states, scalars):
    direction, states = adafactor_direction(g, states, scalars)
    return apply_step(p, scalars[0], scalars[4], direction), states


@triton.jit
def adafactor_of_vectors_direction(g, states, scalars):
    """Of a tensor whose elements have a mean square each."""
    variance = lerp(states[0], g * g, scalars[1])
    return adafactor_direction(g, (variance,), scalars)


@triton.jit
def adafactor_of_vectors_update(p, g, states, scalars):
    direction, states = adafactor_of_vectors_direction(g, states, scalars)
    return apply_step(p, scalars[0], scalars[4], direction), states


class Rule(NamedTuple):
    """A rule's two functions, and how much goes into and comes out of them.

    Attributes:
        compute_scalars: once per tensor and step.
        update: once per element.
        hyperparameters: how many `compute_scalars` takes.
        scalars: how many it returns.
        states: the numbers of states that `update` may be given.
        numbers: how many it keeps of a tensor.
        registers: of a thread of `update` at most; None: as many as others with so many states.
        direction: once per element, before the step: where it goes; None of most rules.
        neg_step: once per tensor then: how far.
    """

    compute_scalars: Any
    update: Any
    hyperparameters: int
    scalars: int
    states: tuple[int, ...]
    numbers: int = 0
    registers: int | None = None
    direction: Any = None
    neg_step: Any = None


RULES = {
    "adam": Rule(adam_scalars, adam_update, 6, 7, states=(2, 3)),
    "sgd": Rule(sgd_scalars, sgd_update, 5, 6, states=(0, 1)),
    "rmsprop": Rule(rmsprop_scalars, rmsprop_update, 5, 5, states=(1, 2)),
    "centered_rmsprop": Rule(rmsprop_scalars, centered_rmsprop_update, 5, 5, states=(2, 3)),
    "lion": Rule(lion_scalars, lion_update, 4, 6, states=(1,)),
    "nadam": Rule(nadam_scalars, nadam_update, 7, 8, states=(2,), registers=96, numbers=1),
    "radam": Rule(radam_scalars, radam_update, 6, 8, states=(2,)),
    "adagrad": Rule(adagrad_scalars, adagrad_update, 4, 3, states=(1,)),
    "adamax": Rule(adamax_scalars, adamax_update, 5, 5, states=(2,)),
    "adadelta": Rule(adadelta_scalars, adadelta_update, 4, 4, states=(2,), registers=96),
    "asgd": Rule(asgd_scalars, asgd_update, 5, 4, states=(1,), numbers=2),
    "rprop": Rule(rprop_scalars, rprop_update, 5, 5, states=(2,)),
    "muon_momentum": Rule(muon_momentum_scalars, muon_momentum_update, 2, 3, states=(1,)),
    "muon": Rule(muon_scalars, muon_update, 3, 2, states=(0,)),
    "adafactor": Rule(
        adafactor_scalars,
        adafactor_update,
        6,
        5,
        states=(1,),
        registers=128,  # the places of both factors are counted beside the rest
        direction=adafactor_direction,
        neg_step=adafactor_neg_step,
    ),
    "adafactor_of_vectors": Rule(
        adafactor_scalars,
        adafactor_of_vectors_update,
        6,
        5,
        states=(1,),
        direction=adafactor_of_vectors_direction,
        neg_step=adafactor_neg_step,
    ),
}
