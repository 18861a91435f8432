"""Section 10 of the contract: each symptom made to appear, and what cures it."""

import pytest
import torch

from spectramind_fused import GradScaler, build_optimizer
from tests.config.test_schema import shipped


def one_parameter(value, dtype=torch.float32):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.full((4,), value, dtype=dtype))
    return model


def config(name, **values):
    plain = shipped(name)
    plain["optimizer"] |= {"auto_param_groups": {"enabled": False}, "clip_grad_norm": 0, **values}
    return plain


@pytest.mark.parametrize("fused", [True, False])
def test_amp_overflow_skips_in_fp16_and_never_happens_in_bf16(fused):
    """A gradient of 40 times a scale of 65,536 is beyond float16."""
    skipped = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = one_parameter(1.0, dtype)
        optimizer = build_optimizer(model, config("adamw", fused=fused))
        scaler = GradScaler("cpu", init_scale=2.0**16)
        skipped[dtype] = 0
        for _ in range(20):
            optimizer.zero_grad()
            before = model.weight.detach().clone()
            scaler.scale((model.weight * 40).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            skipped[dtype] += torch.equal(model.weight, before) and scaler.get_scale() < 2.0**16
        assert model.weight.isfinite().all()
    assert skipped[torch.float16] >= 6
    assert skipped[torch.bfloat16] == 0


def test_instability_one_wild_batch_throws_sgd_far_unless_it_is_clipped():
    moved = {}
    for clip in (0, 1.0):
        model = one_parameter(0.0)
        optimizer = build_optimizer(model, config("sgd", clip_grad_norm=clip))
        for gradient in (0.1, 1e4, 0.1):
            model.weight.grad = torch.full((4,), gradient)
            optimizer.step()
        moved[clip] = model.weight.abs().max().item()
    assert moved[0] > 100
    assert moved[1.0] < 0.1


def test_regularization_surprise_adams_decay_passes_through_its_normalisation():
    """Coupled, ten times the decay hardly changes the step; decoupled, it is ten times the pull."""
    pull = {}
    for name in ("adam", "adamw"):
        for decay in (0.01, 0.1):
            model = one_parameter(5.0)
            optimizer = build_optimizer(model, config(name, weight_decay=decay))
            model.weight.grad = torch.zeros(4)
            optimizer.step()
            pull[name, decay] = 5.0 - model.weight[0].item()
    assert pull["adam", 0.1] == pytest.approx(pull["adam", 0.01], rel=0.01)
    assert pull["adam", 0.01] == pytest.approx(3e-4, rel=0.01)  # lr, whatever the decay
    assert pull["adamw", 0.1] == pytest.approx(10 * pull["adamw", 0.01], rel=0.05)


def distance(**lookahead):
    model = one_parameter(0.0)
    values = {"lookahead": {"enabled": True, **lookahead}} if lookahead else {}
    optimizer = build_optimizer(model, config("sgd", momentum=0.0, nesterov=False, **values))
    for _ in range(60):
        model.weight.grad = -torch.ones(4)
        optimizer.step()
    return model.weight[0].item()


def test_lookahead_is_slower_by_alpha_on_a_slope():
    """The smaller alpha, the slower; k alone changes nothing where the slope does not."""
    plain = distance()
    for alpha in (0.3, 0.5, 0.8, 1.0):
        assert distance(alpha=alpha, k=6) == pytest.approx(alpha * plain, rel=1e-4)
    assert distance(alpha=0.5, k=5) == pytest.approx(distance(alpha=0.5, k=6), rel=1e-4)
