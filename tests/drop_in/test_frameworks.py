"""What other code does with an optimizer: hooks, closures, schedules, scalers, trainers."""

import pytest
import torch

from tests.reference import (
    BACKENDS,
    CLASSES,
    clones,
    close,
    make_params,
    train,
)

SHAPES = [(), (0,), (17,), (1025,)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_closures_versions_and_profiler_ranges(backend):
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        assert torch.is_grad_enabled()
        calls.append("closure")
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    versions = [p._version for p in params]
    with torch.no_grad(), torch.profiler.profile() as profile:
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert loss.item() > 0
    assert calls == ["pre", "closure", "post"]
    assert all(p._version > v for p, v in zip(params, versions, strict=True))
    names = [event.key for event in profile.key_averages()]
    assert names.count("Optimizer.step#FusedAdamW.step") == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    ],
)
def test_schedulers_of_torch_drive_it(schedule, backend):
    params = make_params(SHAPES)
    torchs = clones(params)
    ours = CLASSES["AdamW"][0](params, lr=torch.tensor(0.01), backend=backend)
    theirs = CLASSES["AdamW"][1](torchs, lr=torch.tensor(0.01), foreach=False)
    for optimizer, mine in ((ours, params), (theirs, torchs)):
        scheduler = schedule(optimizer)
        for step in range(8):
            train([(optimizer, mine)], step, 1)
            scheduler.step()
    close(params, torchs)
