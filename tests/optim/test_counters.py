"""Step counters: as far as a float64 counts, and what follows from them in the kernels."""

import pytest
import torch

import spectramind_fused as ours
from tests.backends import KERNELS
from tests.inputs import clones, make_grads, set_grads
from tests.oracle import CLASSES, RICHEST
from tests.pairs import pair, step_alike, train

on_kernels = pytest.mark.parametrize("backend", KERNELS)


@on_kernels
@pytest.mark.parametrize("count", [float("inf"), 1e30, 2.0**40])
def test_a_huge_step_counter_means_no_bias_correction_as_in_torch(count, backend):
    both = pair("AdamW", backend)
    for optimizer, params in both:
        optimizer.state[params[1]]["step"].fill_(count)
    step_alike(both)
    ((optimizer, params), _) = both
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_counter_is_of_torchs_dtype_unless_lookahead_counts_on(kind, k, backend):
    params = [torch.randn(9).requires_grad_()]
    optimizer = CLASSES[kind][0](params, lr=0.1, lookahead_k=k, backend=backend)
    train([(optimizer, params)], 1, 3)
    step = optimizer.state[params[0]].get("step")
    if step is None and kind == "SGD":  # kept apart, and not at all by torch's own step
        step = optimizer._counters.get(params[0], torch.tensor(3.0))
    assert step.dtype == (torch.float64 if k else torch.float32)
    assert int(step) == 3


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize("k", [4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lookahead_counts_beyond_what_a_float32_holds(k, backend, dtype):
    torch.manual_seed(0)
    params = [torch.randn(9).to(dtype).requires_grad_()]
    optimizer = ours.FusedSGD(params, lr=0.1, lookahead_k=k, backend=backend)
    train([(optimizer, params)], 1, 1)
    state = optimizer.state[params[0]]
    state["step"] = torch.tensor(2.0**24 - 2)
    synced = []
    for step in range(2**24 - 1, 2**24 + 12):
        set_grads(params, make_grads(params))
        optimizer.step()
        if torch.equal(params[0], state["slow_weights"]):
            synced.append(step)
        assert int(state["step"]) == step
    assert synced == [step for step in range(2**24 - 1, 2**24 + 12) if step % k == 0]


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize("fused", [None, True])
def test_a_float64_counter_is_kept(fused, backend):
    params = [torch.randn(9).requires_grad_()]
    optimizer = ours.FusedAdamW(params, backend=backend, fused=fused, lr=0.1)
    train([(optimizer, params)], 1, 1)
    saved = optimizer.state_dict()
    count = 2**24 + 1
    saved["state"][0]["step"] = torch.tensor(count, dtype=torch.float64)
    optimizer.load_state_dict(saved)
    train([(optimizer, params)], 2, 2)
    assert int(optimizer.state[params[0]]["step"]) == count + 2
    theirs = torch.optim.AdamW(clones(params), lr=0.1)
    theirs.load_state_dict(optimizer.state_dict())
    set_grads(theirs.param_groups[0]["params"], make_grads(params))
    theirs.step()


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("kind", [kind for kind in RICHEST if kind not in ("SGD", "Lion")])
def test_a_float32_counter_stops_where_torchs_does_and_the_steps_go_on_alike(kind, backend):
    """SGD and Lion count nothing that they compute with."""
    both = pair(kind, backend, **RICHEST[kind])
    for optimizer, params in both:
        for p in params:
            optimizer.state[p]["step"].fill_(2.0**24 - 2)
    for step in range(2**24 - 1, 2**24 + 5):
        step_alike(both, steps=1)
        for optimizer, params in both:
            assert int(optimizer.state[params[0]]["step"]) == min(step, 2**24)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(
    "options",
    [{"lookahead_k": 3}, {"state_dtype": "bfloat16", "low_precision_min_size": 0}],
    ids=str,
)
@pytest.mark.parametrize("kind", RICHEST)
def test_a_counter_goes_on_where_something_of_ours_counts_on_it(kind, options, backend):
    info = CLASSES[kind][0]
    own = {name: value for name, value in RICHEST[kind].items() if name != "centered"}
    if "state_dtype" in options and not info.algorithm.has_moments({"centered": False}):
        options = {"stochastic_rounding": True}
    params = [torch.randn(9).bfloat16().requires_grad_()]
    optimizer = info(params, backend=backend, **{**own, **options})
    train([(optimizer, params)], 1, 1)
    optimizer.state[params[0]]["step"].fill_(2.0**24 - 2)
    for step in range(2**24 - 1, 2**24 + 5):
        set_grads(params, make_grads(params))
        optimizer.step()
        assert int(optimizer.state[params[0]]["step"]) == step
        assert params[0].isfinite().all()
