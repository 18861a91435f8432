"""Compiles every Triton kernel variant for GPUs that are not here; run by test_compile.py.

    python -m tests.kernels.compile_variants cuda 80

prints one JSON object per variant. It needs a process of its own: in the tests' process
Triton interprets, and compiles nothing.
"""

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectramind_fused.kernels.triton import (
    advance_constants,
    norm_constants,
    update_constants,
    walk,
)
from spectramind_fused.kernels.triton.rules import RULES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TYPES = {
    "pointers": "*i64",
    "sizes": "*i64",
    "chunks": "*i64",
    "pieces": "*i64",
    "groups": "*i32",
    "hyperparameters": "*fp64",
    "sources": "*i64",
    "scalars": "*fp32",
    "tensors": "i32",
    "partials": "*fp64",
    "partial_rows": "i32",
    "first_row": "i32",
    "norm": "*fp64",
    "nonfinite": "*fp32",
    "grad_scale": "*fp32",
    "found_inf": "*fp32",
}
OPTIONS = ("num_warps", "enable_fp_fusion")


def compiled(kernel, constants, target):
    options = {key: constants[key] for key in OPTIONS}
    constexprs = {key: value for key, value in constants.items() if key not in OPTIONS}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constexprs)
    return triton.compile(source, target=target, options=options)


def flags(*names):
    """All off, each one on, all on."""
    for on in [(), *((name,) for name in names), names]:
        yield {name: name in on for name in names}


def variants():
    """Dtypes, rules and epilogues; what `advance` is given does not change with the dtype."""
    for dtype in DTYPES:
        yield {"kernel": "norm", "dtype": str(dtype)}, walk.norm, norm_constants(dtype)
    for name, rule in RULES.items():
        for on in flags("held", "reduced", "scaled", "found_inf", "skip_nonfinite"):
            yield (
                {"kernel": "advance", "rule": name, **on},
                walk.advance,
                advance_constants(name, **on),
            )
        for states in rule.states:
            for on in flags("lookahead", "ema", "zero_grads"):
                for dtype in DTYPES:
                    slots = (dtype, dtype, torch.float32) + (dtype,) * (states + on["lookahead"])
                    slots += (torch.float32,) * on["ema"]
                    label = {"kernel": "update", "rule": name, "states": states, **on}
                    constants = update_constants(name, states, slots, **on)
                    yield {**label, "dtype": str(dtype)}, walk.update, constants


def main(backend, arch):
    cuda = backend == "cuda"
    target = GPUTarget(backend, int(arch) if cuda else arch, 32 if cuda else 64)
    for label, kernel, constants in variants():
        assembly = compiled(kernel, constants, target).asm
        binary = assembly["cubin" if cuda else "hsaco"]
        text = assembly["ptx" if cuda else "amdgcn"]
        wide = "ld.global.v4.b32" if cuda else "global_load_dwordx4"
        stored = "st.global.v4.b32" if cuda else "global_store_dwordx4"
        print(
            json.dumps(
                {**label, "bytes": len(binary), "wide_loads": text.count(wide)}
                | {"wide_stores": text.count(stored), "fma": text.count("fma.rn.f32")}
                | {"contractible": len(re.findall(r"\b(?:add|sub|mul)\.f(?:32|64)\b", text))}
                | {"barriers": text.count("bar.sync") + text.count("s_barrier")}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
