"""An optimizer of ours beside torch's, over equal parameters."""

import pytest
import torch

from tests.reference import CLASSES, assert_equal, clones, close, train

SHAPES = [(9,), (4, 4), (2100,)]


def pair(kind, backend, shapes=SHAPES, **options):
    """An optimizer of ours and one of torch's over equal parameters, after two steps."""
    torch.manual_seed(0)
    params = [torch.randn(shape).requires_grad_() for shape in shapes]
    torchs = clones(params)
    both = [
        (CLASSES[kind][0](params, backend=backend, **options), params),
        (CLASSES[kind][1](torchs, foreach=False, **options), torchs),
    ]
    train(both, 1, 2)
    return both


def step_alike(both, seed=5):
    """Two more steps of both, from the same gradients, end alike."""
    train(both, seed, 2)
    (_, params), (_, torchs) = both
    close(params, torchs)


def refused(optimizer, params, error, match):
    """A step is refused in these words, and nothing has moved."""
    held = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    before = [t.detach().clone() for t in [*params, *held]]
    with pytest.raises(error, match=match):
        optimizer.step()
    assert_equal([*params, *held], before)
