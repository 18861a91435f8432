"""What other code does with an optimizer: hooks, closures, schedules, scalers, trainers."""

import warnings

import pytest
import torch
from torch import nn

from tests.asserts import assert_equal, close
from tests.backends import BACKENDS
from tests.inputs import clones, make_params
from tests.oracle import CLASSES
from tests.pairs import train

pytestmark = pytest.mark.cpu

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
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert loss.item() > 0
    assert calls == ["pre", "closure", "post"]
    assert all(p._version > v for p, v in zip(params, versions, strict=True))
    names = [event.key for event in profile.key_averages()]
    assert names.count("Optimizer.step#FusedAdamW.step") == 1


# Every schedule of torch's; those of a class that another one stands on need no entry.
S = torch.optim.lr_scheduler
SCHEDULES = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: S.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: S.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: S.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: S.SequentialLR(
        o, [S.ConstantLR(o, total_iters=3), S.ExponentialLR(o, 0.8)], milestones=[3]
    ),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 10),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.LinearLR(o), S.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: S.CyclicLR(o, 1e-3, 0.1, step_size_up=3),  # cycles momentum too
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: S.OneCycleLR(o, max_lr=0.1, total_steps=10),  # and so does this
    "PolynomialLR": lambda o: S.PolynomialLR(o, total_iters=8),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=4),
}


def test_no_schedule_of_torchs_is_left_out():
    theirs = {
        name
        for name, value in vars(S).items()
        if isinstance(value, type) and issubclass(value, S.LRScheduler) and name[0] != "_"
    }
    assert theirs - {"LRScheduler"} == SCHEDULES.keys() - {"SWALR"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9})])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float lr", "tensor lr"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_torch_drive_it(schedule, tensor_lr, kind, options, backend):
    params = make_params(SHAPES)
    torchs = clones(params)
    rates = []
    for cls, mine, extra in ((0, params, {"backend": backend}), (1, torchs, {"foreach": False})):
        lr = torch.tensor(0.01) if tensor_lr else 0.01
        optimizer = CLASSES[kind][cls](mine, lr=lr, **options, **extra)
        scheduler = SCHEDULES[schedule](optimizer)
        rates.append([])
        for step in range(8):
            train([(optimizer, mine)], step, 1)
            scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
            group = optimizer.param_groups[0]
            rates[-1].append((float(group["lr"]), group.get("betas"), group.get("momentum")))
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    close(params, torchs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_one_optimizer_per_parameter_may_step_within_backward(kind, backend):
    """`register_post_accumulate_grad_hook`: no gradient outlives its parameter's step."""
    torch.manual_seed(0)
    models = [network(), network()]
    inside = {
        p: CLASSES[kind][0]([p], lr=0.01, lookahead_k=2, backend=backend)
        for p in models[0].parameters()
    }

    def step(param):
        inside[param].step()
        inside[param].zero_grad()

    for param in inside:
        param.register_post_accumulate_grad_hook(step)
    after = CLASSES[kind][0](models[1].parameters(), lr=0.01, lookahead_k=2, backend=backend)
    for i in range(5):
        inputs, targets = batch(i)
        for model in models:
            loss_of(model, inputs, targets).backward()
        assert all(p.grad is None for p in inside)
        after.step()
        after.zero_grad()
    assert_equal(models[0].parameters(), models[1].parameters())


# Trainers: the same weights as with torch's class in the same trainer, and a resume in its middle


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.LayerNorm(33), nn.Tanh(), nn.Linear(33, 3))


def batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(16, 8, generator=generator), torch.randn(16, 3, generator=generator)


def loss_of(model, inputs, targets):
    return nn.functional.mse_loss(model(inputs), targets)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_fabric(kind, precision):
    pytest.importorskip("lightning_fabric")
    from lightning_fabric import Fabric

    trained = []
    for cls in (0, 1):
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.init_module():
            plain = network()
        model, optimizer = fabric.setup(plain, CLASSES[kind][cls](plain.parameters(), 0.01))
        for i in range(5):
            loss = loss_of(model, *batch(i))  # Fabric converts what goes in and comes out
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            optimizer.zero_grad()
        trained.append(list(plain.parameters()))
    # Torch's steps on CPUs round 16-bit parameters after every operation, ours once.
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if precision == "bf16-true" else {}
    torch.testing.assert_close(*trained, **tolerance)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_accelerate(kind, tmp_path):
    """Its wrapper hides what torch's classes have not; a run of torch's goes on with ours."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator

    def prepared(cls, **options):
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(*made(cls, **options))
        return accelerator, model, optimizer

    def made(cls, **options):
        model = network()
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        return model, CLASSES[kind][cls](model.parameters(), lr=0.01, **momentum, **options)

    def train(accelerator, model, optimizer, steps):
        for i in steps:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, *batch(i)))
                optimizer.step()
                optimizer.zero_grad()

    torchs = prepared(1)
    train(*torchs, range(3))
    torchs[0].save_state(tmp_path / "torchs")
    train(*torchs, range(3, 6))
    ours = prepared(0)
    ours[0].load_state(tmp_path / "torchs")
    train(*ours, range(3, 6))
    torch.testing.assert_close(list(ours[1].parameters()), list(torchs[1].parameters()))

    accelerator, model, optimizer = prepared(0, clip_grad_norm=0.5, ema_decay=0.9)
    train(accelerator, model, optimizer, range(2))
    assert not hasattr(optimizer, "grad_norm")
    assert optimizer.optimizer.grad_norm > 0
    with optimizer.optimizer.ema_weights():
        model(batch(0)[0])


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_pytorch_lightning(kind, tmp_path):
    """With its closure, its clipping, a schedule, and a checkpoint to go on from."""
    pytest.importorskip("lightning")
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self, cls):
            super().__init__()
            self.model, self.cls = network(), cls

        def training_step(self, i):
            return loss_of(self.model, *batch(int(i)))

        def configure_optimizers(self):
            optimizer = self.cls(self.parameters(), lr=0.01)
            schedule = S.LinearLR(optimizer, total_iters=6)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.arange(4), batch_size=None)

    def fit(cls, epochs, checkpoint=None):
        module = Module(cls)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, gradient_clip_val=0.5,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's, of few workers and batches
            trainer.fit(module, ckpt_path=checkpoint)
        return module, trainer

    theirs, _ = fit(CLASSES[kind][1], 2)
    ours, _ = fit(CLASSES[kind][0], 2)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    for first, then in ((0, 0), (1, 0), (0, 1)):  # torch's checkpoint in ours, and back
        _, trainer = fit(CLASSES[kind][first], 1)
        path = tmp_path / f"{first}{then}.ckpt"
        trainer.save_checkpoint(path)
        resumed, trainer = fit(CLASSES[kind][then], 2, path)
        assert trainer.global_step == 8
        torch.testing.assert_close(list(resumed.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_hugging_face_trainer(kind, tmp_path):
    """By `optimizer_cls_and_kwargs`, with its groups, clipping and schedule; and a resume."""
    pytest.importorskip("transformers")
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, inputs, labels):
            return {"loss": loss_of(self.layers, inputs, labels)}

    data = [dict(zip(("inputs", "labels"), batch(i), strict=True)) for i in range(8)]
    data = [{k: v[j] for k, v in each.items()} for each in data for j in range(16)]

    def fit(cls, name, steps=6, **resumed):
        arguments = TrainingArguments(
            tmp_path / name, max_steps=steps, per_device_train_batch_size=16, use_cpu=True,
            save_steps=3, report_to=[], weight_decay=0.1, max_grad_norm=0.5, warmup_steps=2,
            disable_tqdm=True, dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        trainer = Trainer(
            Model(), arguments, train_dataset=data, optimizer_cls_and_kwargs=(cls, {"lr": 0.01})
        )
        trainer.train(**resumed)
        assert type(trainer.optimizer.optimizer) is cls
        return list(trainer.model.parameters())

    ours, theirs = CLASSES[kind]
    expected = fit(theirs, "torch's")
    torch.testing.assert_close(fit(ours, "ours"), expected)
    for first, then in (("torch's", ours), ("ours", theirs), ("ours", ours)):
        checkpoint = str(tmp_path / first / "checkpoint-3")
        torch.testing.assert_close(
            fit(then, "resumed", resume_from_checkpoint=checkpoint), expected
        )
