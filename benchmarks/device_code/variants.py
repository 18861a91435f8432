"""Every variant of every Triton kernel, compiled for GPUs that are not here.

Not in a process whose Triton interprets: that one compiles nothing.
"""

import torch
import triton
from triton.compiler import ASTSource

from spectramind_fused.kernels.triton import (
    advance_constants,
    norm,
    norm_constants,
    reduce_constants,
    update_constants,
    walk,
)
from spectramind_fused.kernels.triton.rules import RULES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TYPES = {
    "pointers": "*i64",
    "sizes": "*i64",
    "chunks": "*i64",
    "places": "*i64",
    "pieces": "*i64",
    "groups": "*i32",
    "hyperparameters": "*fp64",
    "sources": "*i64",
    "scalars": "*fp32",
    "tensors": "i32",
    "first_number": "i32",
    "partials": "*fp64",
    "partial_rows": "*i64",
    "sums": "*fp64",
    "rows": "i64",
    "norm": "*fp64",
    "nonfinite": "*fp32",
    "grad_scale": "*fp32",
    "found_inf": "*fp32",
}
OPTIONS = ("num_warps", "enable_fp_fusion", "maxnreg")


def compiled(kernel, constants, target):
    """What `triton.compile` returns for a kernel with these constants and options."""
    options = {key: constants[key] for key in OPTIONS if key in constants}
    constexprs = {key: value for key, value in constants.items() if key not in OPTIONS}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constexprs)
    return triton.compile(source, target=target, options=options)


def elements_of(constants):
    """How many elements a program takes in a turn of its loop over whole vectors."""
    if "BLOCKS" in constants:
        return 8 * constants["ROWS"] * constants["BLOCKS"]
    return constants.get("BLOCK", 1)


def flags(*names):
    """All off, each one on, all on."""
    for on in [(), *((name,) for name in names), names]:
        yield {name: name in on for name in names}


def variants():
    """Dtypes, rules and epilogues; what `advance` is given does not change with the dtype."""
    for dtype in DTYPES:
        for pairs in (False, True):
            label = {"kernel": "norm", "dtype": str(dtype), "pairs": pairs}
            yield label, norm.norm, norm_constants(dtype, pairs)
    yield {"kernel": "reduce"}, norm.reduce, reduce_constants()
    for name, rule in RULES.items():
        for on in flags("held", "reduced", "scaled", "found_inf", "skip_nonfinite"):
            yield (
                {"kernel": "advance", "rule": name, **on},
                walk.advance,
                advance_constants(name, torch.float32, torch.float32, **on),
            )
        for states in rule.states:
            for on in flags("lookahead", "ema", "zero_grads"):
                for dtype in DTYPES:
                    slots = (dtype, dtype, torch.float32) + (dtype,) * (states + on["lookahead"])
                    slots += (torch.float32,) * on["ema"]
                    label = {"kernel": "update", "rule": name, "states": states, **on}
                    constants = update_constants(name, states, slots, **on)
                    yield {**label, "dtype": str(dtype)}, walk.update, constants
