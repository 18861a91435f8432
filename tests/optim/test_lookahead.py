"""Lookahead: the three-line algorithm, inside the step of every rule and backend."""

import io

import pytest
import torch

from tests.asserts import TORCHS_ULPS, Magnitudes, assert_within_ulps
from tests.backends import BACKENDS, KERNELS
from tests.inputs import clones, make_grads, make_params, set_grads
from tests.oracle import CLASSES, VARIANTS, Reference, name_of
from tests.pairs import BesideReference

SHAPES = [(), (0,), (17,), (1025,)]


def train(optimizer, params, seed, steps):
    torch.manual_seed(seed)
    for _ in range(steps):
        set_grads(params, make_grads(params))
        optimizer.step()


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_kernels_equal_the_reference_bit_for_bit(variant, backend, dtype):
    kind, options = variant
    options = {**options, "lookahead_k": 3, "lookahead_alpha": 0.8}
    both = BesideReference(kind, make_params(SHAPES, dtype), backend, **options)
    for _ in range(8):
        both.step()
        both.check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_equals_torch_optim_followed_by_three_lines(kind, backend):
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True} if kind == "SGD" else {"lr": 1e-2}
    params = make_params(SHAPES)
    expected = clones(params)
    optimizer = CLASSES[kind][0](
        params, lookahead_k=6, lookahead_alpha=0.5, backend=backend, **options
    )
    theirs = CLASSES[kind][1](expected, foreach=False, **options)
    slow = [p.detach().clone() for p in expected]
    sizes = Magnitudes()
    for step in range(1, 26):
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(expected, grads)
        optimizer.step()
        theirs.step()
        if step % 6 == 0:
            for p, s in zip(expected, slow, strict=True):
                s.add_(p.detach() - s, alpha=0.5)
                p.data.copy_(s)
        sizes.see(expected)
    assert_within_ulps(params, expected, sizes.largest, TORCHS_ULPS)


@pytest.mark.parametrize("backend", KERNELS)
def test_no_byte_of_the_slow_weights_is_touched_on_a_step_that_does_not_sync(backend):
    params = make_params([(3000,), (5,)])
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=4, backend=backend)
    train(optimizer, params, 0, 1)
    tables = optimizer.describe_plan().buckets[0].tables
    addresses = tables.pointers[-1].clone()
    assert addresses.tolist() == [optimizer.state[p]["slow_weights"].data_ptr() for p in params]
    for step in range(2, 10):
        # Page 0 is never mapped: a single access would end this process.
        tables.pointers[-1] = addresses if step % 4 == 0 else 16
        before = [optimizer.state[p]["slow_weights"].clone() for p in params]
        train(optimizer, params, step, 1)
        after = [optimizer.state[p]["slow_weights"] for p in params]
        synced = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(synced) if step % 4 == 0 else not any(synced)


@pytest.mark.parametrize("resumed_on", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("phase", range(1, 5))
def test_a_resume_at_any_phase_goes_on_bit_for_bit(phase, kind, backend, resumed_on):
    options = {"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {"lr": 1e-2, "amsgrad": True}
    options |= {"lookahead_k": 4, "lookahead_alpha": 0.3}
    params = make_params(SHAPES)
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    train(optimizer, params, 1, phase)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    twins = clones(params)
    resumed = CLASSES[kind][0](twins, backend=resumed_on, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    sizes = Magnitudes()
    for seed in range(2, 9):
        train(optimizer, params, seed, 1)
        train(resumed, twins, seed, 1)
        sizes.see(params)
    same = (backend == "eager") == (resumed_on == "eager")
    assert_within_ulps(params, twins, sizes.largest, 0 if same else TORCHS_ULPS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_look_ahead_each_with_their_own_period_in_one_bucket(backend):
    periods = [0, 2, 3]
    groups = [make_params([(9,), (33,)]) for _ in periods]
    twins = [clones(group) for group in groups]
    optimizer = CLASSES["SGD"][0](
        [{"params": g, "lookahead_k": k} for g, k in zip(groups, periods, strict=True)],
        lr=0.1,
        backend=backend,
    )
    references = [
        Reference("SGD", twin, lr=0.1, lookahead_k=k)
        for twin, k in zip(twins, periods, strict=True)
    ]
    sizes = [Magnitudes() for _ in periods]
    for _ in range(7):
        for group, twin, reference, seen in zip(groups, twins, references, sizes, strict=True):
            grads = make_grads(group)
            set_grads(group, grads)
            set_grads(twin, grads)
            reference.step()
            seen.see(twin)
        optimizer.step()
    for group, twin, seen in zip(groups, twins, sizes, strict=True):
        assert_within_ulps(group, twin, seen.largest, TORCHS_ULPS if backend == "eager" else 0)
    if backend != "eager":
        assert len(optimizer.describe_plan().buckets) == 1
    assert "slow_weights" not in optimizer.state[groups[0][0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_without_gradients_for_a_while_syncs_by_its_own_count(backend):
    params = make_params([(9,), (33,)])
    twins = clones(params)
    optimizer = CLASSES["SGD"][0](params, lr=0.1, lookahead_k=3, backend=backend)
    references = [Reference("SGD", [twin], lr=0.1, lookahead_k=3) for twin in twins]
    sizes = Magnitudes()
    for step in range(12):
        for i, (p, twin, reference) in enumerate(zip(params, twins, references, strict=True)):
            if (step + i) % 3 == 0:
                p.grad = None
                continue
            grad = torch.randn_like(p)
            p.grad, twin.grad = grad, grad.clone()
            reference.step()
        optimizer.step()
        sizes.see(twins)
    assert_within_ulps(params, twins, sizes.largest, TORCHS_ULPS if backend == "eager" else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookahead_k": -1}, "lookahead_k -1"),
        ({"lookahead_k": 2.5}, "lookahead_k 2.5"),
        ({"lookahead_k": 3, "lookahead_alpha": 1.5}, "lookahead_alpha 1.5"),
        ({"lookahead_k": 3, "differentiable": True}, "differentiable"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CLASSES["AdamW"][0](make_params([(3,)]), **options)
