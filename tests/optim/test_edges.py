"""Values at the edge: what is infinite or no number in torch is so here, and nothing else."""

import pytest
import torch

from tests.backends import BACKENDS
from tests.oracle import CLASSES, VARIANTS, name_of

# Of float32; each element meets one in a step of three.
EDGES = [3e38, -3e38, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-42, 1e-20, 0.0, -0.0]
STEPS = 7


def alike(actual, expected, what):
    """Infinite and NaN in the same places, and close elsewhere, relative to what was subtracted."""
    for mask in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(mask(actual), mask(expected)), f"{what}: {actual} for {expected}"
    finite = torch.isfinite(expected)
    atol = 1e-6 if what.startswith(("parameter", "momentum")) else 1e-30
    torch.testing.assert_close(actual[finite], expected[finite], rtol=1e-4, atol=atol, msg=what)


@pytest.mark.parametrize("first", [0, 1], ids=["at once", "later"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_every_rule_meets_the_edges_as_torch_does(variant, backend, first):
    kind, options = variant
    torch.manual_seed(0)
    count = 4 * len(EDGES)
    params = [torch.randn(count).requires_grad_()]
    torchs = [params[0].detach().clone().requires_grad_()]
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    theirs = CLASSES[kind][1](torchs, foreach=False, **options)
    for step in range(STEPS):
        grad = torch.randn(count)
        if step % 3 == first:
            grad[: 2 * len(EDGES)] = torch.tensor(2 * EDGES).roll(step)
        params[0].grad, torchs[0].grad = grad, grad.clone()
        optimizer.step()
        theirs.step()
        alike(params[0].detach(), torchs[0].detach(), f"parameter, step {step}")
        for name, held in theirs.state[torchs[0]].items():
            if name != "step" and held is not None:
                alike(optimizer.state[params[0]][name], held, f"{name}, step {step}")
