"""Every kernel variant as compiled code: all rules, dtypes, tails, unaligned views, groups."""

import pytest
import torch

from spectramind_fused import GradScaler
from spectramind_fused.kernels import triton
from tests import place
from tests.asserts import Magnitudes, assert_equal, assert_within_ulps
from tests.backends import GPU_KERNELS
from tests.inputs import clones, make_grads, set_grads
from tests.oracle import CLASSES, VARIANTS, Reference, name_of
from tests.pairs import BesideReference

pytestmark = pytest.mark.compiled
on_each_backend = pytest.mark.parametrize("backend", GPU_KERNELS)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# All residues mod 8, and around the tail block, the block and the chunk.
SIZES = [0, *range(1, 18), 511, 512, 513, 1023, 1024, 1025, 1535, 1537, 8191, 8192, 8193]


def tails(dtype):
    """Aligned tensors of every tail, then views that begin at each odd offset."""
    params = [torch.randn(size).to(dtype) for size in SIZES]
    for offset in (1, 2, 3, 5):
        params.append(torch.randn(2100 + offset).to(dtype)[offset:])
    params.append(torch.randn(33, 40).to(dtype).t())
    return [p.requires_grad_() for p in params]


def poison_scalars(gpu, optimizer):
    """Whatever `update` reads there, `advance` must have written in this step."""
    plan = optimizer.describe_plan()
    for bucket in plan.buckets if plan else []:
        gpu.poison(bucket.tables.scalars)


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lookahead_k", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_equals_elementary_torch_bit_for_bit(gpu, backend, variant, lookahead_k, dtype):
    kind, options = variant
    options = {**options, "lookahead_k": lookahead_k, "lookahead_alpha": 0.8}
    both = BesideReference(kind, tails(dtype), backend, **options)
    for _ in range(3):
        poison_scalars(gpu, both.optimizer)
        grads = both.step()
        assert_equal([p.grad for p in both.params], grads)
    both.check()
    launches = [launch.name for launch in gpu.launches]
    if kind == "Adafactor":  # of vectors, then of the matrix
        of_both = ["advance", "measure", "scale", "update"]
        factored = ["squares", "advance", "move", "divide", "measure", "scale", "update"]
        assert launches == [*of_both, *factored] * 3
    else:
        assert launches == ["advance", "update"] * 3


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("variant", [VARIANTS[i] for i in (5, 9, 14, 16)], ids=name_of)
def test_the_whole_tail_equals_elementary_torch_bit_for_bit(
    gpu, backend, variant, zero_grads, dtype
):
    """Unscale, clip, update, Lookahead, EMA, zero: three launches; one step of four is skipped."""
    kind, options = variant
    ours = {"lookahead_k": 2, "lookahead_alpha": 0.8, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    options = {**options, **ours}
    both = BesideReference(kind, tails(dtype), backend, zero_grads, **options)
    scaler = GradScaler(place.device, init_scale=4.0)
    for step in range(4):
        scaler.scale(torch.ones(()))
        scale = scaler.get_scale()
        grads = [g * scale for g in make_grads(both.params)]
        if step == 1:
            grads[-2][7] = float("inf")
        both.give(grads)
        poison_scalars(gpu, both.optimizer)
        scaler.step(both.optimizer)
        scaler.update()
        both.reference.step(scale, skip=step == 1)
        assert scaler.get_scale() == (4.0 if step == 0 else 2.0)
        left = [torch.zeros_like(g) if zero_grads else g for g in grads]
        assert_equal([p.grad for p in both.params], left)
        both.check()
    assert [launch.name for launch in gpu.launches] == ["norm", "advance", "update"] * 4


@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hyperparameters_in_tensors_are_read_at_every_step(gpu, backend, dtype):
    lr = torch.tensor(0.1, dtype=dtype)
    both = BesideReference("SGD", tails(torch.float32), backend, lr=lr, momentum=0.9)
    for _ in range(3):
        both.reference.options["lr"] = lr.item()
        both.step()
        lr.mul_(0.5)
    both.check()


@on_each_backend
def test_fifty_groups_are_two_launches(gpu, backend):
    params = [torch.randn(17 + i).requires_grad_() for i in range(50)]
    twins = clones(params)
    own = [{"lr": 1e-3 * (i + 1), "weight_decay": 0.01 * i} for i in range(50)]
    optimizer = CLASSES["AdamW"][0](
        [{"params": [p], **o} for p, o in zip(params, own, strict=True)], backend=backend
    )
    references = [Reference("AdamW", [t], **o) for t, o in zip(twins, own, strict=True)]
    for _ in range(2):
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(twins, grads)
        optimizer.step()
        for reference in references:
            reference.step()
    assert_equal(params, twins)
    assert len(gpu.launches) == 4


@pytest.fixture
def fp_fusion(monkeypatch):
    """Compiles with multiply-adds contracted, as Triton does unless told otherwise."""
    for name in ("advance_constants", "update_constants"):
        original = getattr(triton, name)
        monkeypatch.setattr(
            triton,
            name,
            lambda *args, original=original, **kwargs: {
                **original(*args, **kwargs),
                "enable_fp_fusion": True,
            },
        )


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_with_fp_fusion_it_stays_within_2_ulp_of_torch(gpu, fp_fusion, variant):
    """Of parameters well away from zero, where the rounding of the change itself shows less."""
    kind, options = variant
    options = {**options, "lr": 0.01}
    params = [p for p in tails(torch.float32) if p.numel() or kind != "Adafactor"]
    for p in params:
        p.data += 0.5 * p.data.sign()
    expected = clones(params)
    optimizer = CLASSES[kind][0](params, backend="triton", **options)
    theirs = CLASSES[kind][1](expected, foreach=False, **options)
    for _ in range(3):
        sizes = Magnitudes()
        sizes.see(params)
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(expected, grads)
        optimizer.step()
        theirs.step()
        sizes.see(expected)
        assert_within_ulps(params, expected, sizes.largest, 2)
        for p, e in zip(params, expected, strict=True):  # each step is judged by itself
            e.data.copy_(p.detach())
            for key, value in theirs.state[e].items():
                value.copy_(optimizer.state[p][key])
    executed = [name for launch in gpu.launches for name in launch.executed]
    assert "fma.rn.f32" in executed or "fma.rn.f32x2" in executed


@on_each_backend
@pytest.mark.parametrize(
    ("kind", "options", "read", "written"),
    [
        ("AdamW", {}, 16, 12),  # p, g, two states
        ("AdamW", {"amsgrad": True}, 20, 16),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, 12, 8),
        ("SGD", {"lr": 0.1}, 8, 4),
        ("RMSprop", {}, 12, 8),
        ("RMSprop", {"momentum": 0.9}, 16, 12),
        ("RMSprop", {"centered": True, "momentum": 0.9}, 20, 16),
        ("Lion", {}, 12, 8),
        ("AdamW", {"ema_decay": 0.9}, 20, 16),  # and the average
        ("AdamW", {"ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}, 20, 20),
    ],
)
def test_traffic_is_what_the_formula_says(gpu, backend, kind, options, read, written):
    """fp32 bytes per parameter: 12 and 8 for each state: 28 for AdamW, 20 for Lion.

    An average makes 8 more, zeroing 4; the norm pass reads 4. The slow weights make 8 on the
    steps that sync, which is one in k, and none on the others; a skipped step makes none.
    """
    params = [torch.randn(size).requires_grad_() for size in (5, 1025, 9000)]
    optimizer = CLASSES[kind][0](params, lookahead_k=3, backend=backend, **options)
    count = sum(p.numel() for p in params)
    for step in range(1, 7):
        set_grads(params, make_grads(params))
        grads = [p.grad for p in params]
        optimizer.step()
        update = gpu.launches[-1].traffic
        states = [optimizer.state[p] for p in params]
        slow = [s["slow_weights"] for s in states]
        own = [v for s in states for k, v in s.items() if "_" in k and k != "slow_weights"]
        zeroed = sum(map(update.stored, grads))
        assert zeroed == (4 * count if optimizer.zero_grads else 0)
        assert sum(map(update.loaded, [*params, *grads, *own])) == read * count
        assert sum(map(update.stored, [*params, *own])) + zeroed == written * count
        touched = sum(map(update.loaded, slow)) + sum(map(update.stored, slow))
        assert touched == (8 * count if step % 3 == 0 else 0)
        # the tables: a few hundred bytes per program, nothing per parameter
        tables = sum(int(at.size) * size for at, size in update.loads) - read * count
        programs = len(optimizer.describe_plan().buckets[0].tables.chunks)
        assert tables - sum(map(update.loaded, slow)) <= 128 * 200 * programs
        if optimizer.clip_grad_norm:
            norm = gpu.launches[-3].traffic
            assert sum(map(norm.loaded, grads)) == 4 * count
            assert sum(map(norm.loaded, [*params, *own, *slow])) == 0
            assert sum(map(norm.stored, [*params, *grads, *own, *slow])) == 0


@on_each_backend
def test_a_skipped_step_moves_nothing(gpu, backend):
    params = [torch.randn(size).requires_grad_() for size in (5, 1025, 9000)]
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=1, ema_decay=0.9, backend=backend)
    for found in (0.0, 1.0):
        set_grads(params, make_grads(params))
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), torch.tensor(2.0)
        optimizer.step()
        update = gpu.launches[-1].traffic
        tensors = [*params, *(p.grad for p in params)]
        tensors += [v for p in params for k, v in optimizer.state[p].items() if "_" in k]
        moved = sum(map(update.loaded, tensors)) + sum(map(update.stored, tensors))
        assert (moved == 0) == (found == 1.0)
