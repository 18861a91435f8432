"""Compiles every Triton kernel variant for GPUs that are not here; run by test_compile.py.

    python -m tests.kernels.compile_variants cuda 80

prints one JSON object per variant. It needs a process of its own: in the tests' process
Triton interprets, and compiles nothing.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectramind_fused.kernels.triton import advance_constants, update_constants, walk
from spectramind_fused.kernels.triton.rules import RULES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TYPES = {
    "pointers": "*i64",
    "sizes": "*i64",
    "chunks": "*i64",
    "groups": "*i32",
    "hyperparameters": "*fp64",
    "scalars": "*fp32",
    "tensors": "i32",
}
OPTIONS = ("num_warps", "enable_fp_fusion")


def compiled(kernel, constants, target):
    options = {key: constants[key] for key in OPTIONS}
    constexprs = {key: value for key, value in constants.items() if key not in OPTIONS}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constexprs)
    return triton.compile(source, target=target, options=options)


def variants():
    for name, rule in RULES.items():
        yield f"advance {name}", walk.advance, advance_constants(name)
        for states in rule.states:
            for lookahead in (False, True):
                for dtype in DTYPES:
                    slots = (dtype, dtype, torch.float32) + (dtype,) * (states + lookahead)
                    label = f"update {name} states={states} lookahead={lookahead} {dtype}"
                    yield label, walk.update, update_constants(name, states, lookahead, slots)


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
                {"variant": label, "bytes": len(binary), "wide_loads": text.count(wide)}
                | {"wide_stores": text.count(stored), "fma": text.count("fma.rn.f32")}
                | {"barriers": text.count("bar.sync") + text.count("s_barrier")}
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
