"""Classes without kernels, as a user's over FusedStep: their own step, and everything around it."""

import copy
import inspect
import io
import pickle

import pytest
import torch

from spectramind_fused import FusedNAdam, GradScaler
from spectramind_fused.optim import FusedStep, unfused
from tests.asserts import assert_equal
from tests.inputs import clones, give, make_grads, set_grads


class Adafactor(FusedStep, torch.optim.Adafactor):
    """Without a rule."""


class Muon(FusedStep, torch.optim.Muon):
    """Without a rule."""


DENSE = {"Adafactor": Adafactor, "Muon": Muon}


def matrices(dtype=torch.float32):
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in ((5, 3), (1, 7), (33, 17))]


def pair(name, dtype=torch.float32, **options):
    params = matrices(dtype)
    return params, DENSE[name](params, **options), clones(params)


def test_every_class_is_there_but_one_that_runs_the_model_itself():
    assert unfused.NAMES == ("SparseAdam",)
    assert unfused.NAdam is FusedNAdam  # it was there before it had kernels
    with pytest.raises(AttributeError, match="LBFGS"):
        _ = unfused.LBFGS


@pytest.mark.parametrize("name", DENSE)
def test_the_step_is_torchs_own(name):
    params, optimizer, twins = pair(name)
    torchs = getattr(torch.optim, name)
    assert isinstance(optimizer, torchs)
    has_forms = "foreach" in inspect.signature(torchs).parameters
    theirs = torchs(twins, **({"foreach": True} if has_forms else {}))
    for _ in range(5):
        give(make_grads(params), params, twins)
        optimizer.step()
        theirs.step()
    assert_equal(params, twins)
    assert list(optimizer.backends().values()) == [f"torch ({name} has no kernels)"]


@pytest.mark.parametrize("name", DENSE)
def test_clip_lookahead_and_average_follow_it(name):
    ours = {"clip_grad_norm": 1.0, "lookahead_k": 2, "lookahead_alpha": 0.8, "ema_decay": 0.5}
    params, optimizer, twins = pair(name, **ours)
    theirs = getattr(torch.optim, name)(twins)
    slow, average = clones(twins), clones(twins)
    for step in range(1, 6):
        give(make_grads(params), params, twins)
        norm = torch.nn.utils.clip_grad_norm_(twins, 1.0)
        optimizer.step()
        theirs.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
        assert all(optimizer.state[p]["lookahead_step"] == step for p in params)
        with torch.no_grad():
            for p, s, a in zip(twins, slow, average, strict=True):
                if step % 2 == 0:
                    s += 0.8 * (p - s)
                    p.copy_(s)
                a += 0.5 * (p - a)
        for p, twin, a in zip(params, twins, average, strict=True):
            torch.testing.assert_close(p, twin, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(optimizer.state[p]["ema_weights"], a.detach(), rtol=1e-4,
                                       atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_16_bit_parameters_are_stepped_in_float32_and_rounded_once(name):
    params, optimizer, twins = pair(name, torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in twins]
    theirs = getattr(torch.optim, name)(wide)
    set_grads(params, make_grads(params))
    give([p.grad for p in params], wide)
    optimizer.step()
    theirs.step()
    assert_equal(params, [w.detach().bfloat16() for w in wide])
    for p, w in zip(params, wide, strict=True):
        for key, value in theirs.state[w].items():
            held = optimizer.state[p][key]
            assert held.dtype == (torch.bfloat16 if value.dim() else value.dtype)
    give(make_grads(params), params)
    optimizer.step()  # from the state it left


@pytest.mark.parametrize("name", DENSE)
def test_a_resume_and_a_copy_go_on_bit_for_bit(name):
    options = {"lookahead_k": 3, "ema_decay": 0.9}
    params, optimizer, _ = pair(name, **options)
    for _ in range(4):
        set_grads(params, make_grads(params))
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = clones(params)
    resumed = DENSE[name](twins, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied, pickled = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    assert type(copied) is type(pickled) is type(optimizer)
    everyone = [(optimizer, params), (resumed, twins)]
    everyone += [(o, o.param_groups[0]["params"]) for o in (copied, pickled)]
    for _ in range(4):
        give(make_grads(params), *(p for _, p in everyone))
        for each, _ in everyone:
            each.step()
        for _, other in everyone[1:]:
            assert_equal(params, other)


def test_our_scaler_skips_a_step_that_is_not_finite():
    params, optimizer, twins = pair("Muon", lookahead_k=2)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    set_grads(params, make_grads(params))
    params[0].grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert_equal(params, twins)
    assert scaler.get_scale() == 2.0


def test_torchs_step_reads_and_writes_what_its_class_keeps():
    class Counting(torch.optim.SGD):
        def __init__(self, params, lr, every):
            super().__init__(params, lr)
            self.every, self.calls = every, 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls % self.every == 0:
                super().step(closure)

    class Ours(FusedStep, Counting):
        pass

    param = torch.ones(3, requires_grad=True)
    optimizer = Ours([param], 0.25, every=2)
    for expected in (1.0, 0.75, 0.75, 0.5):
        param.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(param, torch.full((3,), expected))
    assert optimizer.calls == 4


def test_what_a_subclass_overrides_is_called_by_torchs_step():
    seen = []

    class Ours(Muon):
        def _init_group(self, *arguments):
            seen.append(arguments)
            return super()._init_group(*arguments)

    params = matrices()
    give(make_grads(params), params)
    Ours(params).step()
    assert seen


def test_sparse_gradients_reach_the_class_that_takes_them():
    weights = torch.nn.Embedding(5, 2, sparse=True)
    twin = copy.deepcopy(weights)
    optimizer = unfused.SparseAdam(weights.parameters(), clip_grad_norm=100.0)
    theirs = torch.optim.SparseAdam(twin.parameters())
    for _ in range(3):
        for module, each in ((weights, optimizer), (twin, theirs)):
            each.zero_grad()
            module(torch.tensor([1, 3])).square().sum().backward()
            each.step()
    torch.testing.assert_close(weights.weight, twin.weight)


def test_a_named_backend_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="backend='cpu' has no kernels for Muon"):
        Muon(matrices(), backend="cpu")
    Muon(matrices(), backend="eager")


def test_a_checkpoint_of_another_class_is_refused():
    params, optimizer, _ = pair("Muon")
    with pytest.raises(ValueError, match=r"another optimizer: it has 'betas'"):
        optimizer.load_state_dict(torch.optim.Adam(params).state_dict())
