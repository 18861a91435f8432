"""Torch's own options and arguments, and which backend serves what."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from spectramind_fused.optim import Options
from tests.asserts import assert_equal, close
from tests.backends import GPU_KERNELS
from tests.inputs import clones, make_grads, make_params, set_grads
from tests.oracle import CLASSES
from tests.pairs import train

SHAPES = [(), (0,), (17,), (1025,)]


@pytest.mark.cpu
def test_options_that_mean_torchs_own_step():
    params = make_params(SHAPES)
    assert "foreach=True" in CLASSES["AdamW"][0](params, foreach=True).backends()["cpu"]
    optimizer = CLASSES["AdamW"][0](params, capturable=True)
    set_grads(params, make_grads(params))
    with pytest.raises(AssertionError, match="capturable=True"):
        optimizer.step()
    weight = torch.ones(3, requires_grad=True)
    moved = weight.clone()
    moved.grad = torch.ones(3)
    CLASSES["SGD"][0]([moved], lr=0.1, differentiable=True).step()
    moved.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))


def test_a_parameter_listed_twice_is_stepped_twice_as_in_torch():
    params = [torch.ones(5).requires_grad_()]
    torchs = clones(params)
    with pytest.warns(UserWarning, match="duplicate"):
        ours = CLASSES["SGD"][0](params * 2, lr=0.1)
    with pytest.warns(UserWarning, match="duplicate"):
        theirs = CLASSES["SGD"][1](torchs * 2, lr=0.1, foreach=False)
    train([(ours, params), (theirs, torchs)], 1, 2)
    close(params, torchs)


@pytest.mark.parametrize(
    "params",
    [[], torch.ones(3), [torch.ones(3, requires_grad=True) * 2], ["text"], [{"params": [1]}]],
)
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_a_parameter_list_that_torch_refuses_is_refused_the_same_way(kind, params):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        CLASSES[kind][1](params, lr=0.1)
    with pytest.raises(type(theirs.value)) as ours:
        CLASSES[kind][0](params, lr=0.1)
    assert str(ours.value) == str(theirs.value)


def test_backends_that_cannot_run_say_why():
    params = make_params([(3,)])
    with pytest.raises(ValueError, match="Unknown backend 'cuba': choose one of auto, triton, c"):
        CLASSES["AdamW"][0](params, backend="cuba")
    meta = [torch.empty(3, device="meta", requires_grad=True)]
    with pytest.raises(ValueError, match="serves CPU tensors, not tensors on meta"):
        CLASSES["AdamW"][0](meta, backend="cpu")


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_dtype_that_a_backend_has_not_is_refused(backend):
    double = make_params([(3,)], torch.float64)
    optimizer = CLASSES["AdamW"][0](double, backend=backend)
    set_grads(double, make_grads(double))
    with pytest.raises(ValueError, match=r"cannot serve .* no torch.float64"):
        optimizer.step()


@pytest.mark.cpu
def test_auto_takes_the_kernels_of_the_device():
    assert CLASSES["AdamW"][0](make_params([(3,)])).backends() == {"cpu": "cpu"}


@pytest.mark.cpu
def test_a_backend_may_be_assigned_between_steps():
    params = make_params(SHAPES)
    torchs = clones(params)
    optimizer, theirs = (CLASSES["AdamW"][i](p) for i, p in enumerate((params, torchs)))
    for backend, served in (("eager", "eager"), ("cpu", "cpu"), ("auto", "cpu")):
        optimizer.backend = backend
        assert optimizer.backends()["cpu"].startswith(served)
        train([(optimizer, params), (theirs, torchs)], 1, 1)
    with pytest.raises(ValueError, match="Unknown backend 'gpu'"):
        optimizer.backend = "gpu"
    assert optimizer.backend == "auto"
    train([(optimizer, params), (theirs, torchs)], 2, 1)
    close(params, torchs)


@pytest.mark.parametrize("kind", ["AdamW", "Lion"])
@pytest.mark.parametrize("source", ["numpy", "omegaconf"])
def test_betas_may_be_any_sequence(source, kind):
    values = [0.8, 0.9]
    if source == "numpy":
        betas = np.array(values)
    else:
        betas = pytest.importorskip("omegaconf").OmegaConf.create(values)
    params = make_params(SHAPES)
    expected = clones(params)
    optimizer = CLASSES[kind][0]([{"params": params, "betas": betas}])
    twin = CLASSES[kind][0](expected, betas=(0.8, 0.9))
    train([(optimizer, params), (twin, expected)], 1, 2)
    assert_equal(params, expected)


def test_the_signature_is_torchs_and_ours():

    names = list(inspect.signature(CLASSES["SGD"][0]).parameters)
    theirs = list(inspect.signature(torch.optim.SGD).parameters)
    of_groups = list(Options._fields)
    of_all = ["clip_grad_norm", "norm_group", "zero_grads", "backend"]
    assert names == [*theirs, *of_groups, *of_all]


def test_the_ranks_of_the_norm_are_named_or_a_group():
    params = make_params([(3,)])
    with pytest.raises(
        ValueError, match="Invalid norm_group 'wrld': give a process group, 'world'"
    ):
        CLASSES["AdamW"][0](params, norm_group="wrld")
    optimizer = CLASSES["AdamW"][0](params, norm_group="world")
    assert copy.deepcopy(optimizer).norm_group == "world"
    optimizer.norm_group = object()  # a process group is of this process
    assert pickle.loads(pickle.dumps(optimizer)).norm_group is None


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["AdamW", "Adafactor"])
def test_a_group_without_an_option_is_refused_as_in_torch(kind):
    params = make_params([(3, 4), (17,)])
    optimizer = CLASSES[kind][0](params, backend="cpu")
    train([(optimizer, params)], 1, 1)
    before = [p.detach().clone() for p in params]
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="lr"):
        optimizer.step()
    assert_equal(params, before)
