"""An optimizer of ours beside torch's, or beside the reference, over equal parameters."""

import pytest
import torch

from tests.asserts import assert_equal, close
from tests.inputs import clones, give, make_grads, set_grads
from tests.oracle import CLASSES, Reference


def train(optimizers_and_params, seed, steps=3):
    """Steps each optimizer by the same gradients."""
    for optimizer, params in optimizers_and_params:
        torch.manual_seed(seed)
        for _ in range(steps):
            set_grads(params, make_grads(params))
            optimizer.step()


def steps_taken(optimizer, params):
    """What the step counters say, wherever they are kept; the eager SGD and Lion keep none."""
    states = [optimizer.state.get(p, {}) for p in params]
    held = [s.get("step", optimizer._counters.get(p)) for s, p in zip(states, params, strict=True)]
    return {int(step) for step in held if step is not None}


class BesideReference:
    """An optimizer of ours and the reference, over equal parameters, for equal gradients.

    Attributes:
        params: ours.
        expected: the reference's.
    """

    def __init__(self, kind, params, backend, zero_grads=False, **options):
        self.params, self.expected = params, clones(params)
        self.optimizer = CLASSES[kind][0](params, backend=backend, zero_grads=zero_grads, **options)
        self.reference = Reference(kind, self.expected, **options)

    def give(self, grads=None):
        """Gives both the same gradients, random ones by default; returns them."""
        grads = make_grads(self.params) if grads is None else grads
        give(grads, self.params, self.expected)
        return grads

    def step(self, grads=None):
        """Both take a step; returns the gradients they were given."""
        grads = self.give(grads)
        self.optimizer.step()
        self.reference.step()
        return grads

    def check(self):
        """Parameters and every state are equal bit for bit."""
        assert_equal(self.params, self.expected)
        assert steps_taken(self.optimizer, self.params) <= {self.reference.steps}
        states = [self.optimizer.state[p] for p in self.params]
        for state, wanted in zip(states, self.reference.states, strict=True):
            assert_equal([state[key] for key in wanted], list(wanted.values()))


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


def step_alike(both, seed=5, steps=2):
    """More steps of both, from the same gradients, end alike."""
    train(both, seed, steps)
    (_, params), (_, torchs) = both
    close(params, torchs)


def refused(optimizer, params, error, match):
    """A step is refused in these words, and nothing has moved."""
    held = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    before = [t.detach().clone() for t in [*params, *held]]
    with pytest.raises(error, match=match):
        optimizer.step()
    assert_equal([*params, *held], before)
