"""Bugs of the kinds GPUs punish, planted in the compiled code: each must be noticed."""

import random
import re

import pytest
import torch

from spectramind_fused import FusedAdamW
from spectramind_fused.kernels import BACKENDS
from tests.backends import GPU_KERNELS
from tests.emulator.cuda import plain_name
from tests.emulator.memory import MemoryFault
from tests.emulator.ptx import PTXError
from tests.inputs import clones, make_grads, set_grads
from tests.oracle import Reference

pytestmark = [pytest.mark.compiled, pytest.mark.cpu]  # in what the emulator runs


@pytest.fixture(params=GPU_KERNELS)
def backend(request):
    return request.param


def setup(backend, sizes=(1030, 5)):
    torch.manual_seed(0)
    params = [torch.randn(size).requires_grad_() for size in sizes]
    params.append(torch.randn(1027)[1:].requires_grad_())  # an unaligned one
    expected = clones(params)
    options = {"lookahead_k": 2, "weight_decay": 0.1, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    optimizer = FusedAdamW(params, backend=backend, **options)
    reference = Reference("AdamW", expected, **options)
    return params, expected, optimizer, reference


def run(params, expected, optimizer, reference, steps=3):
    """Whether parameters, states, slow and averaged weights are what the reference says.

    The second step meets infinite gradients and is skipped.
    """
    for step in range(steps):
        grads = make_grads(params)
        if step == 1:
            grads[0][1024] = grads[1][2] = grads[2][-1] = float("inf")
        set_grads(params, grads)
        set_grads(expected, grads)
        optimizer._checks_for_inf = True
        optimizer.step()
        reference.step(skip=step == 1)
    pairs = list(zip(params, expected, strict=True))
    for i, p in enumerate(params):
        state = {**reference.states[i], "slow_weights": reference.slow[i]}
        state["ema_weights"] = reference.average[i]
        pairs += [(optimizer.state[p][key], value) for key, value in state.items()]
    return all(torch.equal(a, b) for a, b in pairs)


def test_without_a_bug_all_is_well(gpu, backend):
    assert run(*setup(backend))


# Triton guards each access; in CUDA C++ a chunk ends where the smaller of two sizes says.
MASKS = {
    "triton": [(rf"@%p\d+ ({access}\.global\.b32)", r"\1") for access in ("ld", "st")],
    "cuda": [(r"min\.s64(\s+%rd\d+), %rd\d+, ", r"mov.b64\1, ")],
}


@pytest.mark.parametrize(
    ("backend", "mask"), [(name, mask) for name in GPU_KERNELS for mask in MASKS[name]]
)
def test_a_dropped_mask_is_a_fault(gpu, backend, mask):
    gpu.mutate = lambda text: re.sub(*mask, text)
    with pytest.raises(MemoryFault, match=r"is inside no tensor|stored twice"):
        run(*setup(backend))


def test_a_false_alignment_hint_is_a_fault(gpu, backend):
    checked = []

    def always_aligned(text):
        changed = re.sub(r"(and\.b64\s+%rd\d+, %rd\d+, )15;", r"\g<1>0;", text)
        checked.append(changed != text)
        return changed

    gpu.mutate = always_aligned
    with pytest.raises(MemoryFault, match="of 16 bytes is misaligned"):
        run(*setup(backend))
    assert any(checked)


def test_overlapping_chunks_are_a_race(gpu, backend):
    params, expected, optimizer, reference = setup(backend)
    run(params, expected, optimizer, reference, steps=1)
    chunks = optimizer.describe_plan().buckets[0].tables.chunks
    chunks[1] = chunks[0]
    with pytest.raises(MemoryFault, match=r"what another stores|stored twice"):
        run(params, expected, optimizer, reference, steps=1)


def test_a_wrong_bias_correction_is_noticed(gpu, backend):
    gpu.mutate = lambda text: text.replace("sqrt.rn.f64", "abs.f64")
    assert not run(*setup(backend))


def test_scalars_that_nobody_wrote_are_noticed(gpu, backend):
    params, expected, optimizer, reference = setup(backend)
    run(params, expected, optimizer, reference, steps=1)
    gpu.poison(optimizer.describe_plan().buckets[0].tables.scalars)
    store = {
        "triton": r"@%p\d+ st\.global\.b32 \[ %rd\d+ \+ 0 \], \{ %r\d+ \};",
        "cuda": r"st\.global\.f32\s+\[%rd\d+\+12\], %f\d+;",
    }[backend]
    gpu.mutate = lambda text: re.sub(store, "", text) if "advance" in text else text
    with pytest.raises(MemoryFault, match="nobody wrote"):
        run(params, expected, optimizer, reference, steps=1)


def test_a_chunk_left_out_of_the_norm_is_noticed(gpu, backend, monkeypatch):
    params, expected, optimizer, reference = setup(backend)
    run(params, expected, optimizer, reference, steps=1)
    norm = BACKENDS[backend].norm

    def all_but_one(tables, reduction):
        norm(tables, reduction)
        reduction.partials[-1] = 0

    monkeypatch.setattr(BACKENDS[backend], "norm", all_but_one)
    assert not run(params, expected, optimizer, reference, steps=1)


SWAPS = {
    "add": "sub", "sub": "add", "mul": "add", "div": "mul", "eq": "ne", "ne": "eq", "lt": "gt",
    "ge": "lt", "neu": "equ", "min": "max", "max": "min", "shl": "shr", "and": "or", "or": "and",
}  # fmt: skip


def mutant(text, chance):
    """One instruction changed: another operation, an operand or immediate, a guard."""
    lines = text.splitlines()
    body = [i for i, line in enumerate(lines) if re.match(r"\s+(@!?%p\d+ )?[a-z][\w.]+\s.*;", line)]
    while True:
        at = chance.choice(body)
        line = lines[at]
        kind = chance.choice(["operation", "immediate", "guard", "operand"])
        if kind == "operation":
            parts = re.split(r"([.\s])", line)
            places = [i for i, part in enumerate(parts) if part in SWAPS]
            if places:
                place = chance.choice(places)
                parts[place] = SWAPS[parts[place]]
                line = "".join(parts)
        elif kind == "immediate":
            line = re.sub(r", (-?\d+);", lambda m: f", {int(m[1]) + 1};", line)
        elif kind == "guard":
            line = re.sub(r"@(!?)(%p\d+)", lambda m: f"@{'' if m[1] else '!'}{m[2]}", line)
        else:
            line = re.sub(r"(, %(?:r|rd|f|fd))(\d+);", lambda m: f"{m[1]}{int(m[2]) - 1};", line)
        if line != lines[at]:
            return "\n".join([*lines[:at], line, *lines[at + 1 :]]), line.strip()


def test_most_random_mutants_are_noticed(gpu, backend, record_property):
    """The share and the unnoticed ones stand in the summary of the test run.

    What goes unnoticed changes nothing that is observed: the arm of a selection that these
    hyperparameters do not take (L2 in AdamW, the far end of a lerp), initial values that are
    overwritten, guards and comparisons that decide nothing at these sizes.
    """
    chance = random.Random(0)
    count, unnoticed = 60, []
    for i in range(count):
        victim = ("update", "advance", "norm")[i % 3]
        changed = {}

        def mutate(text, victim=victim, changed=changed):
            if plain_name(re.search(r"\.entry (\w+)", text)[1]) != victim:
                return text
            if "text" not in changed:
                changed["text"], changed["line"] = mutant(text, chance)
            return changed["text"]

        gpu.mutate = mutate
        try:
            noticed = not run(*setup(backend))
        except (MemoryFault, PTXError, ValueError, IndexError):
            noticed = True
        if not noticed:
            unnoticed.append(f"{victim}: {changed['line']}")
    head = f"{backend}: {count - len(unnoticed)} of {count} random mutants noticed; unnoticed:"
    record_property("summary", "\n    ".join([head, *unnoticed]))
    assert len(unnoticed) <= 0.4 * count
