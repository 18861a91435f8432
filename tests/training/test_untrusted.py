"""Checkpoints that come from anywhere: refused in a sentence, or a run goes on; nothing else."""

import io
import time
import warnings
import zipfile

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision

from spectramind_fused import FusedAdamW
from spectramind_fused.config.check import ConfigError
from spectramind_fused.training import checkpoint

EPOCHS = 4


def run():
    """A model, an optimizer and a schedule that have taken a step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = FusedAdamW(model.parameters(), lr=0.1, lookahead_k=2, ema_decay=0.9)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [2])
    step(model, optimizer, schedule)
    return model, optimizer, schedule, MixedPrecision("16-mixed", "cpu")


def step(model, optimizer, schedule, *_):
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    schedule.step()


def saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    told = {"epoch": 2, "config": {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}}}
    checkpoint.save(path, checkpoint.collect(told, *run()))
    return path


def resumed(path):
    """What a checkpoint is refused with; empty where a run went on from it."""
    parts = run()
    try:
        checkpoint.restore(path, checkpoint.load(path, EPOCHS), *parts)
    except ConfigError as error:
        (said,) = error.problems
        assert "\n" not in said
        assert f"training.resume={path}" in said
        return said
    step(*parts)
    return ""


def leaves(value, path=()):
    """The places in a checkpoint, those of containers too."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from leaves(value[i], (*path, i))


def changed(content, path, value):
    """A checkpoint with one place changed; the rest is shared."""
    key, *rest = path
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[key] = changed(content[key], rest, value) if rest else value
    return copy


def cycle():
    around = []
    around.append(around)
    return around


def doubled():
    """A list of 2**60 values that takes no memory."""
    value = [0]
    for _ in range(60):
        value = [value, value]
    return value


VALUES = {
    "nothing": None,
    "text": "x",
    "a flag": True,
    "a negative number": -5,
    "a huge number": 10**30,
    "nan": float("nan"),
    "an empty list": [],
    "an empty dict": {},
    "a nan": torch.tensor(float("nan")),
    "another shape": torch.zeros(7, 7),
    "whole numbers": torch.zeros(2, 3, dtype=torch.int64),
    "an absurd shape": torch.zeros(1).expand(10**12),
    "a cycle": cycle(),
    "a bomb": doubled(),
}


@pytest.mark.parametrize("what", VALUES)
def test_any_place_may_hold_anything(what, tmp_path):
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    assert resumed(path) == ""
    refused = 0
    places = list(leaves(content))
    for place in places:
        torch.save(changed(content, place, VALUES[what]), path)
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused += resumed(path) != ""
        assert time.monotonic() - began < 5, place
    assert len(places) > 60
    print(f"{what}: {refused} of {len(places)} refused")
    if what in ("an absurd shape", "a cycle", "a bomb"):
        assert refused == len(places)


@pytest.mark.parametrize(
    "place", [("epoch",), ("rng",), ("config",), ("optimizer",), ("optimizer", "state", 0, "step")]
)
def test_what_a_run_needs_is_missed_by_name(place, tmp_path):
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    torch.save(content, path)
    assert str(place[-1]) in resumed(path)


@pytest.mark.parametrize("epoch", [-5, 5, 10**9])
def test_an_epoch_that_this_run_has_not(epoch, tmp_path):
    path = saved(tmp_path)
    torch.save(torch.load(path, weights_only=True) | {"epoch": epoch}, path)
    assert str(epoch) in resumed(path)


def test_code_is_not_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": Planted()}, path)
    assert "Weights only load failed" in resumed(path)


class Planted:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint ran",))


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    path = saved(tmp_path)
    squeezed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    path.write_bytes(squeezed.getvalue())
    assert "it is compressed" in resumed(path)


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off(part, tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "cannot be read as a checkpoint" in resumed(path)


def test_a_grad_scaler_goes_on_with_its_scale(tmp_path):
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    content["precision"] |= {"scale": 1024.0, "_growth_tracker": 7}
    torch.save(content, path)
    parts = run()
    checkpoint.restore(path, checkpoint.load(path, EPOCHS), *parts)
    assert parts[-1].state_dict() == content["precision"]
    content["precision"]["scale"] = 0.0
    torch.save(content, path)
    assert "its GradScaler's scale is 0.0" in resumed(path)
