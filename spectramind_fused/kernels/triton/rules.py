"""The arithmetic of each optimizer in Triton, on values already in registers.

A rule is two functions. `<rule>_scalars` runs in `advance`, once per tensor and step, in
float64: hyperparameters and step count in, the few numbers an element needs out.
`<rule>_update` runs per element in float32. Operations, their order and every fma are those of
csrc/update_rules.h, which says why; with FP fusion off, so that no other product is contracted,
both give the same bits. Variants (AMSGrad, SGD without momentum) differ in how many states they
hold, and where that does not tell them apart (centered RMSprop) in their name; everything else
is a number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def power(base, exponent):
    """base**exponent by repeated squaring, as csrc does it: no library's pow rounds alike."""
    result = base * 0 + 1
    for _ in range(31):
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


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
def adam_scalars(hyperparameters, step):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyperparameters
    neg_decay = tl.where(decoupled != 0, -(lr * weight_decay), 0.0)
    l2 = tl.where(decoupled != 0, 0.0, weight_decay)
    neg_step = -(lr / (1 - power(beta1, step)))
    root_correction2 = tl.sqrt(1 - power(beta2, step))
    return neg_decay, l2, 1 - beta1, 1 - beta2, neg_step, root_correction2, eps


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
def sgd_scalars(hyperparameters, step):
    lr, momentum, dampening, weight_decay, nesterov = hyperparameters
    first = step == 1  # the first momentum buffer is the undampened gradient
    momentum_minus_one = tl.where(first, -1.0, momentum - 1)
    one_minus_dampening = tl.where(first, 1.0, 1 - dampening)
    return weight_decay, momentum_minus_one, one_minus_dampening, momentum, nesterov, -lr


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
def rmsprop_scalars(hyperparameters, step):
    lr, alpha, eps, weight_decay, momentum = hyperparameters
    return weight_decay, 1 - alpha, eps, momentum - 1, -lr


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
def lion_scalars(hyperparameters, step):
    lr, beta1, beta2, weight_decay = hyperparameters
    return -(lr * weight_decay), beta1, 1 - beta1, beta2, 1 - beta2, -lr


@triton.jit
def lion_update(p, g, states, scalars):
    """Lion: every element moves by lr."""
    neg_decay, beta1, weight1, beta2, weight2, neg_lr = scalars
    direction = states[0] * beta1 + weight1 * g
    sign = tl.where(direction > 0, 1.0, tl.where(direction < 0, -1.0, 0.0))
    return apply_step(p, neg_decay, neg_lr, sign), (states[0] * beta2 + weight2 * g,)


class Rule(NamedTuple):
    """A rule's two functions, and how much goes into and comes out of them.

    Attributes:
        compute_scalars: once per tensor and step.
        update: once per element.
        hyperparameters: how many `compute_scalars` takes.
        scalars: how many it returns.
        states: the numbers of states that `update` may be given.
    """

    compute_scalars: Any
    update: Any
    hyperparameters: int
    scalars: int
    states: tuple[int, ...]


RULES = {
    "adam": Rule(adam_scalars, adam_update, 6, 7, states=(2, 3)),
    "sgd": Rule(sgd_scalars, sgd_update, 5, 6, states=(0, 1)),
    "rmsprop": Rule(rmsprop_scalars, rmsprop_update, 5, 5, states=(1, 2)),
    "centered_rmsprop": Rule(rmsprop_scalars, centered_rmsprop_update, 5, 5, states=(2, 3)),
    "lion": Rule(lion_scalars, lion_update, 4, 6, states=(1,)),
}
