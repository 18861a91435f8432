"""Values at the edge: what is infinite or no number in torch is so here, and nothing else."""

import pytest
import torch

from tests.backends import BACKENDS
from tests.oracle import CLASSES, NUMBERS, VARIANTS, name_of

# Each element meets one in a step of three. Where only the weighted square is finite, 1e20, torch
# goes on.
EDGES = {
    torch.float32: [3e38, -3e38, 1e20, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-42,
                    1e-20, 0.0, -0.0],
    torch.float64: [1e308, -1e308, 1e155, float("inf"), -float("inf"), float("nan"), 5e-324,
                    -1e-310, 1e-200, 0.0, -0.0],
    torch.bfloat16: [3e38, -3e38, 1e20, float("inf"), -float("inf"), float("nan"), 1e-40, 0.0],
    torch.float16: [6e4, -6e4, 250.0, float("inf"), -float("inf"), float("nan"), 6e-8, 0.0],
}  # fmt: skip
STEPS = 7


def alike(actual, expected, what, dtype):
    """Infinite and NaN in the same places, and close elsewhere, relative to what was subtracted."""
    unit = torch.finfo(dtype).eps
    rtol, atol = max(1e-4, 4 * unit), 1e-30
    if what.startswith(("parameter", "momentum")):  # sums of values around 1
        atol = max(1e-6, unit)
    for mask in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(mask(actual), mask(expected)), f"{what}: {actual} for {expected}"
    finite = torch.isfinite(expected)
    torch.testing.assert_close(actual[finite], expected[finite], rtol=rtol, atol=atol, msg=what)


def rounded(optimizer, param, dtype):
    """Torch computes 16 bits in float32 here, and is rounded once per step, as ours is."""
    with torch.no_grad():
        param.copy_(param.to(dtype))
        for name, held in optimizer.state[param].items():
            if name not in NUMBERS and held is not None:
                held.copy_(held.to(dtype))


NOT_NEGATIVE = {
    "exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size"
}  # fmt: skip
WHEN = {"at once": 0, "later": 1, "in the states": None}
CASES = [
    pytest.param(backend, dtype, when, id=f"{backend}-{dtype}-{when}")
    for backend in BACKENDS
    for dtype in EDGES
    for when in WHEN
    if dtype != torch.float64 or backend in ("cpu", "eager")
    if dtype in (torch.float32, torch.float64) or when == "later"
]


@pytest.mark.parametrize(("backend", "dtype", "when"), CASES)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_every_rule_meets_the_edges_as_torch_does(variant, backend, dtype, when):
    kind, options = variant
    first = WHEN[when]
    edges = EDGES[dtype]
    torch.manual_seed(0)
    count = 4 * len(edges)
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    params = [torch.randn(count, dtype=dtype).requires_grad_()]
    # On a GPU torch's own loop squares 1e20 before it weighs the square, and overflows.
    where = params[0].device if backend == "eager" else "cpu"
    torchs = [params[0].detach().to(where, wide, copy=True).requires_grad_()]
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    # On a GPU torch steps by its foreach form unasked, which orders some operations otherwise.
    form = {} if backend == "eager" else {"foreach": False}
    theirs = CLASSES[kind][1](torchs, **form, **options)
    for step in range(STEPS):
        grad = torch.randn(count, dtype=dtype)
        if first is not None and step % 3 == first:
            grad[: 2 * len(edges)] = torch.tensor(2 * edges).to(dtype).roll(step)
        params[0].grad, torchs[0].grad = grad, grad.to(where, wide, copy=True)
        optimizer.step()
        theirs.step()
        rounded(theirs, torchs[0], dtype)
        mine = params[0].detach().to(where, wide)
        alike(mine, torchs[0].detach(), f"parameter, step {step}", dtype)
        for name, held in theirs.state[torchs[0]].items():
            if name in NUMBERS or held is None:
                continue
            mine = optimizer.state[params[0]][name]
            alike(mine.to(where, wide), held, f"{name}, step {step}", dtype)
            if first is None and step % 3 == 1:
                values = torch.tensor(2 * edges).to(dtype).roll(step)
                values = values.abs() if name in NOT_NEGATIVE else values
                mine[: 2 * len(edges)] = values
                held[: 2 * len(edges)] = values.to(wide)
