"""Checkpoints by torch.distributed.checkpoint: ours, torch's, and from one to the other."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

from tests.oracle import CLASSES, KINDS_OF_STATE, Reference
from tests.ranks import TAIL, assert_same, backward, inputs_of, model, on_ranks, sharded

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
]

SHARDED = StateDictOptions()
FORMS = {
    "sharded": SHARDED,
    "full": StateDictOptions(full_state_dict=True),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
}


def train_sharded(cls, options, folder, first, last, form=SHARDED, partial=False):
    """Goes on from what `folder` holds of step `first`, or begins; saves there."""
    network = sharded(init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = cls(network.parameters(), **options)
    if first:
        weights, state = get_state_dict(network, optimizer, options=form)
        content = {"model": weights, "optimizer": state}
        planner = DefaultLoadPlanner(allow_partial_load=True) if partial else None
        dcp.load(content, checkpoint_id=folder / str(first), planner=planner)
        set_state_dict(
            network,
            optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
            options=form,
        )
        for state in optimizer.state.values() if partial else ():
            state.pop("slow_weights", None)
            state.pop("ema_weights", None)
    for step in range(first, last):
        backward(network, inputs_of(step))
        optimizer.step()
    weights, state = get_state_dict(network, optimizer, options=form)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / str(last))
    return network, optimizer


# What an optimizer's state lacks when it is loaded, torch's checkpoints do not load: Adagrad's is
# there from the beginning, without our weights.
CASES = {k: o if k == "Adagrad" else {**o, **TAIL} for k, o in KINDS_OF_STATE.items()}


def save_after_three(rank, folder):
    for kind, options in CASES.items():
        train_sharded(CLASSES[kind][0], options, folder / kind, 0, 3)


def go_on_to_six(rank, folder):
    """Three steps more, to where an unbroken run in one process gets."""
    for kind, options in CASES.items():
        network, _ = train_sharded(CLASSES[kind][0], options, folder / kind, 3, 6)
        whole = model()
        reference = Reference(kind, list(whole.parameters()), **options)
        for step in range(6):
            backward(whole, inputs_of(step))
            reference.step()
        assert_same(
            network.parameters(), whole.parameters(), f"{kind} in {dist.get_world_size()} processes"
        )


@pytest.mark.parametrize("processes", [1, 3])
def test_a_sharded_checkpoint_goes_on_in_another_number_of_processes(processes, tmp_path):
    on_ranks(2, save_after_three, tmp_path, tmp_path)
    on_ranks(processes, go_on_to_six, tmp_path, tmp_path)


KINDS = {
    "AdamW": ("AdamW", {"amsgrad": True}),
    "Adam": ("Adam", {}),
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD with momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "RMSprop": ("RMSprop", {"centered": True, "momentum": 0.5}),
}


def there_and_back(rank, folder):
    """Torch's class, ours, torch's again: as if the class had never been switched."""
    for (name, (kind, options)), (form_name, form) in itertools.product(
        KINDS.items(), FORMS.items()
    ):
        if name == "SGD" and form_name == "full":
            continue  # torch asserts that some state has dimensions, with its own SGD as well
        ours, theirs = CLASSES[kind]
        path = folder / f"{name} {form_name}"
        train_sharded(theirs, options, path, 0, 2, form)
        _, optimizer = train_sharded(ours, options, path, 2, 4, form)
        assert not optimizer.describe_plan().eager
        network, _ = train_sharded(theirs, options, path, 4, 6, form)
        whole = model()
        reference = theirs(whole.parameters(), **options)
        for step in range(6):
            backward(whole, inputs_of(step))
            reference.step()
        assert_same(network.parameters(), whole.parameters(), f"{name}, {form_name}")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_checkpoint_of_torchs_is_ours_and_back(processes, tmp_path):
    on_ranks(processes, there_and_back, tmp_path, tmp_path)


def with_our_options_on(rank, folder):
    """What a checkpoint of torch's lacks begins anew; the rest is taken."""
    for name, (kind, options) in KINDS.items():
        ours, theirs = CLASSES[kind]
        path = folder / name
        train_sharded(theirs, options, path, 0, 2)
        on = {**options, "lookahead_k": 3, "ema_decay": 0.5}
        network, optimizer = train_sharded(ours, on, path, 2, 6, partial=True)
        whole = model()
        params = list(whole.parameters())
        reference = theirs(params, **options)
        for step in range(2):
            backward(whole, inputs_of(step))
            reference.step()
        slow = [p.detach().clone() for p in params]
        average = [p.detach().clone() for p in params]
        # SGD's checkpoint has no counter: DCP leaves the one of the step that made the state.
        count = 1 if kind == "SGD" else 2
        for step in range(2, 6):
            backward(whole, inputs_of(step))
            reference.step()
            count += 1
            with torch.no_grad():
                for p, s in zip(params, slow, strict=True) if count % 3 == 0 else ():
                    p.copy_(s.lerp_(p, 0.5))
                torch._foreach_lerp_(average, params, 0.5)
        assert_same(network.parameters(), params, name)
        averages = [optimizer.state[p]["ema_weights"] for p in network.parameters()]
        assert_same(averages, average, name)


def test_a_checkpoint_of_torchs_loads_where_our_options_are_on(tmp_path):
    on_ranks(1, with_our_options_on, tmp_path, tmp_path)
