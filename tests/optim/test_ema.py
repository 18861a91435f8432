"""ema_decay: averaged weights in the step, in the state, and in the model for a while."""

import copy
import io

import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spectramind_fused.optim import Options
from tests.asserts import TORCHS_ULPS, Magnitudes, assert_equal, assert_within_ulps
from tests.backends import BACKENDS, KERNELS
from tests.inputs import clones, give, make_grads, make_params
from tests.oracle import CLASSES, VARIANTS, Reference, name_of
from tests.pairs import BesideReference

SHAPES = [(), (0,), (17,), (1025,)]
HALF = (torch.bfloat16, torch.float16)


def averages(optimizer, params):
    return [optimizer.state[p]["ema_weights"] for p in params]


def train(optimizer, params, steps=3, seed=0):
    torch.manual_seed(seed)
    for _ in range(steps):
        give(make_grads(params), params)
        optimizer.step()


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS[::3], ids=name_of)
def test_kernels_equal_the_reference_bit_for_bit(variant, backend, dtype):
    kind, options = variant
    options = {**options, "ema_decay": 0.99, "lookahead_k": 3}
    both = BesideReference(kind, make_params(SHAPES, dtype), backend, **options)
    for _ in range(5):
        both.step()
        both.check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_equals_torchs_step_followed_by_torchs_average(decay, backend):
    params = make_params(SHAPES)
    torchs = clones(params)
    optimizer = CLASSES["AdamW"][0](params, lr=0.1, ema_decay=decay, backend=backend)
    theirs = CLASSES["AdamW"][1](torchs, lr=0.1, foreach=False)
    average, update = [p.detach().clone() for p in torchs], get_ema_multi_avg_fn(decay)
    sizes = Magnitudes()
    for _ in range(10):
        give(make_grads(params), params, torchs)
        optimizer.step()
        theirs.step()
        update(average, [p.detach() for p in torchs], None)
        sizes.see(torchs)
    assert_within_ulps(averages(optimizer, params), average, sizes.largest, TORCHS_ULPS)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", BACKENDS)
def test_averages_of_16_bit_parameters_move_at_any_decay(dtype, backend):
    """In 16 bits a ten-thousandth of the way to the parameter rounds to nothing."""
    params = [torch.ones(100, dtype=dtype).requires_grad_()]
    optimizer = CLASSES["SGD"][0](params, lr=0.5, ema_decay=0.9999, backend=backend)
    expected = 1.0
    for step in range(1, 6):
        give([torch.ones(100)], params)
        optimizer.step()
        expected += 1e-4 * (1 - 0.5 * step - expected)
    (average,) = averages(optimizer, params)
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((100,), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_average_each_at_their_own_decay_in_one_bucket(backend, dtype):
    decays = [None, 0.5, 0.9]
    groups = [make_params([(9,), (33,)], dtype) for _ in decays]
    twins = [clones(group) for group in groups]
    optimizer = CLASSES["SGD"][0](
        [{"params": g, "ema_decay": d} for g, d in zip(groups, decays, strict=True)],
        lr=0.1,
        backend=backend,
    )
    references = [
        Reference("SGD", twin, lr=0.1, ema_decay=d) for twin, d in zip(twins, decays, strict=True)
    ]
    for _ in range(3):
        for group, twin in zip(groups, twins, strict=True):
            give(make_grads(group), group, twin)
        optimizer.step()
        for reference in references:
            reference.step()
    for group, reference in zip(groups, references, strict=True):
        equal = torch.testing.assert_close if backend == "eager" else assert_equal
        equal(group, reference.params)
        for p, average in zip(group, reference.average, strict=True):
            if reference.decay is None:
                assert "ema_weights" not in optimizer.state[p]
            else:
                torch.testing.assert_close(optimizer.state[p]["ema_weights"].cpu(), average)
    if backend != "eager":
        assert len(optimizer.describe_plan().buckets) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_and_out_of_the_model(backend, dtype):
    params = make_params(SHAPES, dtype)
    optimizer = CLASSES["AdamW"][0](params, lr=0.1, ema_decay=0.9, backend=backend)
    with optimizer.ema_weights():  # before the first step the average is the parameter
        pass
    train(optimizer, params)
    trained, addresses = clones(params), [p.data_ptr() for p in params]
    average = [a.to(dtype) for a in averages(optimizer, params)]
    with torch.no_grad(), optimizer.ema_weights():
        assert not torch.is_grad_enabled()
    versions = [p._version for p in params]
    with optimizer.ema_weights():
        assert_equal(params, average)
        assert all(p._version > v for p, v in zip(params, versions, strict=True))
        sum(p.float().sum() for p in params).backward()
        with pytest.raises(RuntimeError, match=r"step\(\) inside"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="in place already"):
            optimizer.ema_weights()
    assert_equal(params, trained)
    assert not any(torch.equal(p, a) for p, a in zip(params, average, strict=True) if p.numel() > 9)
    assert addresses == [p.data_ptr() for p in params]
    with pytest.raises(ZeroDivisionError), optimizer.ema_weights():
        _ = 1 / 0
    assert_equal(params, trained)
    train(optimizer, params, 1)


def test_a_parameter_without_a_step_keeps_its_value():
    params = make_params([(3,), (4,)])[:2]
    optimizer = CLASSES["SGD"][0](params, lr=0.1, ema_decay=0.5)
    params[0].grad = torch.ones(3)
    optimizer.step()
    before = clones(params)
    with optimizer.ema_weights():
        assert not torch.equal(params[0], before[0])
        assert torch.equal(params[1], before[1])


@pytest.mark.parametrize("resumed_on", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resume_goes_on_bit_for_bit(dtype, backend, resumed_on):
    params = make_params(SHAPES, dtype)
    options = {"lr": 0.1, "momentum": 0.9, "ema_decay": 0.9}
    optimizer = CLASSES["SGD"][0](params, backend=backend, **options)
    train(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = clones(params)
    resumed = CLASSES["SGD"][0](twins, backend=resumed_on, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(averages(resumed, twins), averages(optimizer, params))
    assert all(a.dtype == torch.float32 for a in averages(resumed, twins))
    train(optimizer, params, seed=1)
    train(resumed, twins, seed=1)
    sizes = Magnitudes()
    sizes.see(params)
    sizes.see(averages(optimizer, params))
    same = (backend == "eager") == (resumed_on == "eager")
    assert_within_ulps(params, twins, sizes.largest, 0 if same else TORCHS_ULPS)
    ulps = 0 if same else 6 if dtype == torch.float32 else 6 * 2**16  # bf16 steps behind them
    assert_within_ulps(averages(optimizer, params), averages(resumed, twins), sizes.largest, ulps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_of_torch_begins_an_average_where_it_stands(backend):
    params = make_params(SHAPES)
    theirs = CLASSES["AdamW"][1](params, lr=0.1)
    train(theirs, params)
    optimizer = CLASSES["AdamW"][0](params, lr=0.1, ema_decay=0.5, backend=backend)
    optimizer.load_state_dict(theirs.state_dict())
    assert Options.of(optimizer.param_groups[0]).ema_decay == 0.5
    before = clones(params)
    train(optimizer, params, 1)
    expected = [torch.lerp(b, p, 0.5).detach() for b, p in zip(before, params, strict=True)]
    torch.testing.assert_close(averages(optimizer, params), expected)


def test_copies_and_pickles_keep_it():
    params = make_params(SHAPES)
    options = {"clip_grad_norm": 0.5, "ema_decay": 0.9, "zero_grads": True, "lookahead_k": 2}
    optimizer = CLASSES["AdamW"][0](params, **options)
    train(optimizer, params)
    twin = copy.deepcopy(optimizer)
    twins = twin.param_groups[0]["params"]
    assert (twin.clip_grad_norm, twin.zero_grads) == (0.5, True)
    assert twin._step_supports_amp_scaling
    train(optimizer, params, seed=1)
    train(twin, twins, seed=1)
    assert_equal(params, twins)
    assert_equal(averages(optimizer, params), averages(twin, twins))
    assert all(not p.grad.any() for p in twins)


@pytest.mark.parametrize("bad", [-0.1, 1.5])
def test_a_decay_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"Invalid ema_decay .* 0 to 1, None to switch it off"):
        CLASSES["AdamW"][0](make_params([(3,)]), ema_decay=bad)
    optimizer = CLASSES["AdamW"][0](make_params([(3,)]))
    with pytest.raises(ValueError, match="Invalid ema_decay"):
        optimizer.add_param_group({"params": make_params([(3,)]), "ema_decay": bad})


def test_without_averages_there_is_nothing_to_put_in():
    optimizer = CLASSES["AdamW"][0](make_params([(3,)]))
    with pytest.raises(RuntimeError, match="give ema_decay"):
        optimizer.ema_weights()
