"""PyTorch's own database of optimizer inputs: same results and same errors, on every backend.

`torch.testing._internal.common_optimizers` is what PyTorch tests its optimizers with; it ships in
its wheel. Each entry builds torch's class and ours, and both are stepped by the same gradients.
"""

import copy

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

from spectramind_fused.optim import OPTIMIZERS, unfused
from tests.asserts import close
from tests.backends import BACKENDS, GPU_KERNELS
from tests.inputs import clones, make_grads, set_grads

NAMES = [*OPTIMIZERS, *unfused.NAMES]
DATABASE = [info for info in optim_db if info.name in NAMES]


def ours(info):
    return OPTIMIZERS[info.name].cls if info.name in OPTIMIZERS else getattr(unfused, info.name)


def backends(info):
    return BACKENDS if info.name in OPTIMIZERS else ["auto", "eager"]


def inputs(device, info):
    """Every option set of a class, with foreach, fused and differentiable each in turn."""
    return _get_optim_inputs_including_global_cliquey_kwargs(device, None, info)


def cases():
    return [
        pytest.param(info, given, backend, dtype, id=f"{info.name}-{given.desc}-{backend}-{dtype}")
        for info in DATABASE
        for given in inputs("cpu", info)
        for backend in backends(info)
        for dtype in (torch.float32, torch.float64)
        if not (backend in GPU_KERNELS and dtype == torch.float64)  # they have none
    ]


def errors():
    return [
        pytest.param(
            info, given, backend, id=f"{info.name}-{given.optimizer_error_input.desc}-{backend}"
        )
        for info in DATABASE
        for given in info.optim_error_inputs_func("cpu", torch.float32)
        for backend in backends(info)
    ]


def shapes(info):
    matrices = [(10, 20), (3, 7), (1, 5)]
    return matrices if info.name == "Muon" else [*matrices, (11,), (2, 3, 5), ()]


def gradients(info, params):
    grads = make_grads(params)
    return [g.to_sparse() for g in grads] if info.only_supports_sparse_grads else grads


def both_trained(info, given, backend, dtype, device="cpu", steps=7):
    """Ours and torch's after the same gradients, each with their parameters."""
    weights = [
        torch.randn(s, dtype=dtype, device=device).requires_grad_()
        for s in shapes(info)
        if s or not info.only_supports_sparse_grads
    ]
    trained = []
    for cls, options in ((ours(info), {"backend": backend}), (info.optim_cls, {})):
        params = clones(weights)
        if given.kwargs.get("differentiable"):  # the step is written onto the tape
            params = [p.clone() for p in params]
        elif info.name == "ASGD" and backend == "auto":
            options = {**options, "foreach": True}  # torch's two forms differ in float64
        optimizer = cls(params, **copy.deepcopy(given.kwargs), **options)
        torch.manual_seed(1)
        for _ in range(steps):
            set_grads(params, gradients(info, params))
            optimizer.step()
        trained.append((optimizer, params))
    return trained


@pytest.mark.cpu
@pytest.mark.parametrize(("info", "given", "backend", "dtype"), cases())
def test_every_input_gives_torchs_results(info, given, backend, dtype):
    (mine, params), (theirs, expected) = both_trained(info, given, backend, dtype)
    as_close_as_may_be(info, params, expected)
    assert_same_state(mine, params, theirs, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("info", DATABASE, ids=lambda info: info.name)
def test_every_input_gives_torchs_results_on_a_gpu(info):
    for given in inputs("cuda", info):
        for backend in ("auto", "eager"):
            both = both_trained(info, given, backend, torch.float32, "cuda")
            (mine, params), (theirs, expected) = both
            as_close_as_may_be(info, params, expected)
            assert_same_state(mine, params, theirs, expected)


def as_close_as_may_be(info, params, expected):
    """Products in bfloat16 are rounded as a library sums them up, and so are the steps of lr."""
    if info.name != "Muon":
        return close(params, expected)
    largest_lr, steps, unit = 1e-2, 7, 2.0**-8
    off = [float((p - e).detach().abs().max()) for p, e in zip(params, expected, strict=True)]
    assert max(off) < largest_lr * steps * unit


def assert_same_state(mine, params, theirs, expected):
    """Torch's entries are there, with torch's shapes, dtypes and devices."""
    for p, e in zip(params, expected, strict=True):
        for key, value in theirs.state[e].items():
            if isinstance(value, torch.Tensor):
                held = mine.state[p][key]
                assert (held.shape, held.dtype) == (value.shape, value.dtype), key


@pytest.mark.cpu
@pytest.mark.parametrize(("info", "given", "backend"), errors())
def test_every_error_is_torchs(info, given, backend):
    wrong = given.optimizer_error_input
    params = wrong.params
    if params is None:
        params = [torch.randn(2, 3, requires_grad=True)]
    expected = (
        pytest.warns(given.error_type, match=given.error_regex)
        if issubclass(given.error_type, Warning)
        else pytest.raises(given.error_type, match=given.error_regex)
    )
    if given.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with expected:
            ours(info)(params, backend=backend, **wrong.kwargs)
    else:
        optimizer = ours(info)(params, backend=backend, **wrong.kwargs)
        with expected:
            optimizer.step()


def test_the_database_holds_every_class_of_ours():
    """Else a class of torch's would be tested by nothing here, and nobody would notice."""
    names = {info.name for info in DATABASE}
    assert names == set(NAMES) - {"Lion"}
