"""Every variant of every Triton kernel, compiled for GPUs that are not here.

Not in a process whose Triton interprets: that one compiles nothing.
"""

import torch
import triton
from triton.compiler import ASTSource

from spectramind_fused.kernels.triton import (
    advance_constants,
    divide_constants,
    factored,
    measure_constants,
    move_constants,
    norm,
    norm_constants,
    reduce_constants,
    scale_constants,
    squares_constants,
    update_constants,
    walk,
)
from spectramind_fused.kernels.triton.rules import RULES
from spectramind_fused.multi_tensor.storages import (
    FACTORED,
    MASTER,
    SIGNED8,
    SPLIT,
    STOCHASTIC,
    UNSIGNED8,
    AnyStorage,
    beside_of,
    dtype_of,
    name_of,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STOCHASTIC = STOCHASTIC[torch.bfloat16]
# In what a parameter and its states are kept, by a name: the mixes that take the most registers.
MIXES: dict[str, tuple[AnyStorage, AnyStorage]] = {
    "float32, int8": (torch.float32, SIGNED8),
    "stochastic, int8": (_STOCHASTIC, SIGNED8),
    "split, stochastic": (SPLIT, _STOCHASTIC),
    "split, int8": (SPLIT, SIGNED8),
}
LIGHT_MIXES: dict[str, tuple[AnyStorage, AnyStorage]] = {
    "bfloat16, float32": (torch.bfloat16, torch.float32),
    "float32, stochastic": (torch.float32, _STOCHASTIC),
    "stochastic, stochastic": (_STOCHASTIC, _STOCHASTIC),
    "stochastic, float32": (_STOCHASTIC, torch.float32),
    "split, float32": (SPLIT, torch.float32),
    "master, float32": (MASTER[torch.bfloat16], torch.float32),
    "float16, float16": (STOCHASTIC[torch.float16], STOCHASTIC[torch.float16]),
    "float16, int8": (STOCHASTIC[torch.float16], SIGNED8),
}
TYPES = {
    "pointers": "*i64",
    "sizes": "*i64",
    "chunks": "*i64",
    "places": "*i64",
    "tiles": "*i64",
    "layouts": "*i64",
    "batches": "*i64",
    "first_chunks": "*i64",
    "measures": "*fp64",
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


_WITHOUT_MOMENTS = ("centered_rmsprop", "asgd", "rprop", "adafactor_of_vectors")
_FACTORED = "adafactor"  # of which `factored_variants` has everything but `advance`


def storage_variants():
    """The heavy mixes with every rule and epilogue at once; with Adam all, also without."""
    for name, rule in RULES.items():
        for states in rule.states if name != _FACTORED else ():
            of_adam = (name, states) == ("adam", 2)
            for mix, (param, state) in (MIXES | LIGHT_MIXES if of_adam else MIXES).items():
                if state == SIGNED8 and name in _WITHOUT_MOMENTS:
                    continue
                choices = list(flags("lookahead", "ema", "zero_grads"))
                for on in choices[:1] * of_adam + choices[-1:]:
                    yield _of_mix(name, states, mix, param, state, on)


def _of_mix(name, states, mix, param, state, on):
    gradient = dtype_of(param)
    of_states = [state] * states
    if state == SIGNED8:  # the last is a square, as in most rules
        of_states[-1:] = [UNSIGNED8] * bool(states)
    weights = torch.float32 if beside_of(param) else gradient
    slots = (param, gradient, torch.float32, *of_states)
    slots += (weights,) * on["lookahead"] + (torch.float32,) * on["ema"]
    constants = update_constants(name, states, slots, **on)
    label = {"kernel": "update", "rule": name, "states": states, **on}
    label |= {"dtype": str(gradient), "storage": mix, "slots": slots}
    return label, walk.update, constants


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
        for states in rule.states if name != _FACTORED else ():
            for on in flags("lookahead", "ema", "zero_grads"):
                for dtype in DTYPES:
                    slots = (dtype, dtype, torch.float32) + (dtype,) * (states + on["lookahead"])
                    slots += (torch.float32,) * on["ema"]
                    label = {"kernel": "update", "rule": name, "states": states, **on}
                    constants = update_constants(name, states, slots, **on)
                    yield {**label, "dtype": str(dtype)}, walk.update, constants


def factored_variants():
    """What only factored and measured tensors have; a kernel's name is not that of a usual one."""
    for dtype in DTYPES:
        of_dtype = {"dtype": str(dtype)}
        yield {"kernel": "squares", **of_dtype}, factored.squares, squares_constants(dtype)
        yield {"kernel": "move", **of_dtype}, factored.move, move_constants(_FACTORED, dtype)
    yield {"kernel": "divide"}, factored.divide, divide_constants(_FACTORED)
    for held in (False, True):
        constants = scale_constants(_FACTORED, torch.float32, held)
        yield {"kernel": "scale", "held": held}, factored.scale, constants
    params = [*DTYPES, _STOCHASTIC, SPLIT, MASTER[torch.float16]]
    for param in params:
        gradient = dtype_of(param)
        for name, state in ((_FACTORED, FACTORED), ("adafactor_of_vectors", gradient)):
            slots = (param, gradient, torch.float32, state)
            label = {"kernel": "measure", "rule": name, "stored": name_of(param)}
            yield label, factored.measure, measure_constants(name, slots)
        for on in (False, True):
            weights = torch.float32 if beside_of(param) else gradient
            slots = (param, gradient, torch.float32, FACTORED, *(weights, torch.float32) * on)
            constants = update_constants(_FACTORED, 1, slots, lookahead=on, ema=on, zero_grads=on)
            label = {"kernel": "factored update", "stored": name_of(param), "all": on}
            yield label, walk.update, constants
