"""The arithmetic of each optimizer in Triton, on values already in registers.

A rule is two functions. `<rule>_scalars` runs in `advance`, once per tensor and step, in
float64: hyperparameters and step count in, the few numbers an element needs out.
`<rule>_update` runs per element in float32. The order of operations is torch.optim's and that
of csrc/update_rules.h; with FP fusion off both give the same bits. Variants (AMSGrad, SGD
without momentum) differ in how many states they hold; everything else is a number.
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
}
