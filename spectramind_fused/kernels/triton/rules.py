"""The arithmetic of each optimizer in Triton, on values already in registers.

A rule is two functions. `<rule>_scalars` runs in `advance`, once per tensor and step, in
float64: hyperparameters and step count in, the few numbers an element needs out.
`<rule>_update` runs per element in float32. The order of operations is torch.optim's and that
of csrc/update_rules.h; with FP fusion off both give the same bits. Variants (AMSGrad, SGD
without momentum) differ in how many states they hold, and where that does not tell them apart
(centered RMSprop) in their name; everything else is a number.
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
    way = end - start
    return tl.where(weight < 0.5, start + weight * way, end - way * (1.0 - weight))


@triton.jit
def maximum(a, b):
    """torch.maximum: a NaN on either side wins."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def adam_scalars(hyperparameters, step):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyperparameters
    decay = tl.where(decoupled != 0, 1 - lr * weight_decay, 1.0)
    l2 = tl.where(decoupled != 0, 0.0, weight_decay)
    neg_step = -(lr / (1 - power(beta1, step)))
    root_correction2 = tl.sqrt(1 - power(beta2, step))
    return decay, l2, 1 - beta1, beta2, 1 - beta2, neg_step, root_correction2, eps


@triton.jit
def adam_update(p, g, states, scalars):
    """Adam, AdamW (decay in place of l2), AMSGrad (a third state)."""
    decay, l2, weight1, keep2, weight2, neg_step, root_correction2, eps = scalars
    p = p * decay
    g = tl.where(l2 != 0, g + l2 * p, g)
    exp_avg = lerp(states[0], g, weight1)
    exp_avg_sq = states[1] * keep2 + weight2 * g * g
    if len(states) == 3:
        max_exp_avg_sq = maximum(states[2], exp_avg_sq)
        denominator = tl.div_rn(tl.sqrt_rn(max_exp_avg_sq), root_correction2) + eps
        p = p + tl.div_rn(neg_step * exp_avg, denominator)
        return p, (exp_avg, exp_avg_sq, max_exp_avg_sq)
    else:
        denominator = tl.div_rn(tl.sqrt_rn(exp_avg_sq), root_correction2) + eps
        p = p + tl.div_rn(neg_step * exp_avg, denominator)
        return p, (exp_avg, exp_avg_sq)


@triton.jit
def sgd_scalars(hyperparameters, step):
    lr, momentum, dampening, weight_decay, nesterov = hyperparameters
    first = step == 1  # the first momentum buffer is the undampened gradient
    keep = tl.where(first, 0.0, momentum)
    take = tl.where(first, 1.0, 1 - dampening)
    return weight_decay, keep, take, momentum, nesterov, -lr


@triton.jit
def sgd_update(p, g, states, scalars):
    """SGD; one state: with momentum."""
    l2, keep, take, look, nesterov, neg_lr = scalars
    g = tl.where(l2 != 0, g + l2 * p, g)
    if len(states) == 1:
        momentum_buffer = states[0] * keep + take * g
        g = tl.where(nesterov != 0, g + look * momentum_buffer, momentum_buffer)
        return p + neg_lr * g, (momentum_buffer,)
    else:
        return p + neg_lr * g, states


@triton.jit
def rmsprop_scalars(hyperparameters, step):
    lr, alpha, eps, weight_decay, momentum = hyperparameters
    return weight_decay, alpha, 1 - alpha, eps, momentum, -lr


@triton.jit
def rmsprop_step(p, g, states, scalars, CENTERED: tl.constexpr):
    l2, keep, weight, eps, keep_momentum, neg_lr = scalars
    g = tl.where(l2 != 0, g + l2 * p, g)
    square_avg = states[0] * keep + weight * g * g
    second = square_avg
    held = (square_avg,)
    if CENTERED:
        grad_avg = lerp(states[1], g, weight)
        second = square_avg - grad_avg * grad_avg
        held = (square_avg, grad_avg)
    denominator = tl.sqrt_rn(second) + eps
    if len(states) > len(held):  # with momentum
        momentum_buffer = states[len(held)] * keep_momentum + tl.div_rn(g, denominator)
        return p + neg_lr * momentum_buffer, held + (momentum_buffer,)
    else:
        return p + tl.div_rn(neg_lr * g, denominator), held


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
    return 1 - lr * weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, -lr


@triton.jit
def lion_update(p, g, states, scalars):
    """Lion: every element moves by lr."""
    decay, keep1, weight1, keep2, weight2, neg_lr = scalars
    direction = states[0] * keep1 + weight1 * g
    sign = tl.where(direction > 0, 1.0, tl.where(direction < 0, -1.0, 0.0))
    p = p * decay + neg_lr * sign
    return p, (states[0] * keep2 + weight2 * g,)


class Rule(NamedTuple):
    """A rule's two functions, and how much goes into and comes out of them."""

    scalars: Any
    update: Any
    hyperparameter_columns: int
    scalar_columns: int
    states: tuple[int, ...]  # how many it may hold


RULES = {
    "adam": Rule(adam_scalars, adam_update, 6, 8, states=(2, 3)),
    "sgd": Rule(sgd_scalars, sgd_update, 5, 6, states=(0, 1)),
    "rmsprop": Rule(rmsprop_scalars, rmsprop_update, 5, 6, states=(1, 2)),
    "centered_rmsprop": Rule(rmsprop_scalars, centered_rmsprop_update, 5, 6, states=(2, 3)),
    "lion": Rule(lion_scalars, lion_update, 4, 6, states=(1,)),
}
