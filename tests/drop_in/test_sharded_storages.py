"""Parameters that lie in parts on several ranks, and what is kept of them in fewer bits."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from spectramind_fused import FusedAdamW
from tests.asserts import assert_equal
from tests.inputs import make_grads, set_grads
from tests.ranks import on_ranks

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

# Parts that begin on a multiple of 8 elements, and not; groups of 32 that straddle them.
SHAPES = [(8, 96), (6, 50), (5, 33), (130,), (4, 6, 10)]
LOW = {"low_precision_min_size": 0, "lr": 1e-2, "seed": 11}
STOCHASTIC = {**LOW, "stochastic_rounding": True, "state_dtype": "bfloat16"}
EIGHT = {**LOW, "stochastic_rounding": True, "state_dtype": "int8"}
SPLIT = {**LOW, "master_weights": "split", "state_dtype": "bfloat16"}


def whole_params():
    torch.manual_seed(0)
    return [torch.randn(shape).bfloat16().requires_grad_() for shape in SHAPES]


def step(optimizer, params, wholes, number):
    torch.manual_seed(number)
    grads = make_grads(wholes)
    for p, g in zip(params, grads, strict=True):
        p.grad = distribute_tensor(g, p.device_mesh, p.placements)
    optimizer.step()
    return grads


def draws_as_one_process_does(rank):
    """Of every split a parameter has the bits that it has in one process."""
    meshes = [(init_device_mesh("cpu", (2,)), ([Shard(0)], [Shard(1)]))]
    for mesh, placements in meshes:
        for placed in placements:
            for backend in ("cpu", "eager"):
                for options in (STOCHASTIC, SPLIT):
                    whole = [p for p in whole_params() if p.dim() > placed[0].dim]
                    parts = [
                        nn.Parameter(distribute_tensor(p.detach(), mesh, placed)) for p in whole
                    ]
                    ours = FusedAdamW(parts, backend=backend, **options)
                    single = FusedAdamW(whole, backend=backend, **options)
                    for number in range(3):
                        set_grads(whole, step(ours, parts, whole, number))
                        single.step()
                    assert_equal([p.full_tensor() for p in parts], whole)
                    for p, q in zip(parts, whole, strict=True):
                        held = ours.state[p]["exp_avg_sq"].full_tensor()
                        assert_equal([held], [single.state[q]["exp_avg_sq"]])


def test_ranks_draw_what_one_process_draws(tmp_path):
    on_ranks(2, draws_as_one_process_does, tmp_path)


def eight_bits(rank):
    """Groups are counted from each rank's first element: each part is as it would be alone."""
    mesh = init_device_mesh("cpu", (2,))
    for backend in ("cpu", "eager"):
        whole = whole_params()
        parts = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in whole]
        ours = FusedAdamW(parts, backend=backend, **{**EIGHT, "stochastic_rounding": False})
        number_of = {id(p): i for i, p in enumerate(parts)}
        for number in range(3):
            step(ours, parts, whole, number)
        for p in parts:
            state = ours.state[p]
            scales = state["exp_avg_scales"]
            assert state["exp_avg_codes"].placements == p.placements
            assert scales.placements == p.placements
            largest = -(-p.shape[0] // 2) * p[0].numel()
            assert scales.shape == (2, -(-largest // 32))
            codes = state["exp_avg_codes"].to_local()
            largest_codes = [int(group.abs().max()) for group in _groups(codes)]
            assert min(largest_codes, default=127) >= 120, number_of[id(p)]


def _groups(codes):
    return codes.reshape(-1).split(32) if codes.numel() else []


def test_groups_are_counted_from_each_ranks_first_element(tmp_path):
    on_ranks(2, eight_bits, tmp_path)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 33), nn.Tanh(), nn.Linear(33, 7)).bfloat16()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)


def backward(model, number):
    inputs = torch.randn(6, 50, generator=torch.Generator().manual_seed(number)).bfloat16()
    model.zero_grad()
    model(inputs).square().mean().backward()


def goes_on(rank, folder):
    """Saved sharded by DCP after three steps, loaded into a new run, as if unbroken."""
    for name, options in {"eight": EIGHT, "split": SPLIT}.items():
        unbroken, first, second = network(), network(), network()
        optimizers = [FusedAdamW(m.parameters(), **options) for m in (unbroken, first, second)]
        for number in range(6):
            backward(unbroken, number)
            optimizers[0].step()
        for number in range(3):
            backward(first, number)
            optimizers[1].step()
        weights, state = get_state_dict(first, optimizers[1])
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
        weights, state = get_state_dict(second, optimizers[2])
        content = {"model": weights, "optimizer": state}
        dcp.load(content, checkpoint_id=folder / name)
        set_state_dict(
            second,
            optimizers[2],
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
        )
        for number in range(3, 6):
            backward(second, number)
            optimizers[2].step()
        pairs = zip(second.parameters(), unbroken.parameters(), strict=True)
        for p, q in pairs:
            assert_equal([p.to_local()], [q.to_local()])
            ours, theirs = optimizers[2].state[p], optimizers[0].state[q]
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                local = [
                    t.to_local() if hasattr(t, "to_local") else t for t in (value, theirs[key])
                ]
                assert_equal(local[:1], local[1:])


def test_a_sharded_checkpoint_goes_on_as_if_unbroken(tmp_path):
    on_ranks(2, goes_on, tmp_path, tmp_path)


# On three ranks, as on two, 6 groups of 32 are the most that are needed: but they begin elsewhere.
RESHARDED = {
    "by element": {**LOW, "state_dtype": "bfloat16", "master_weights": "float32"},
    "eight": {**LOW, "state_dtype": "int8"},
    "split": SPLIT,
}


def resharded(rank, folder, load):
    for name, options in RESHARDED.items():
        torch.manual_seed(0)
        model = fully_shard(nn.Linear(40, 3, bias=False).bfloat16())
        optimizer = FusedAdamW(model.parameters(), **options)
        if not load:
            inputs = torch.randn(6, 40).bfloat16()
            model(inputs).square().mean().backward()
            optimizer.step()
        weights, state = get_state_dict(model, optimizer)
        content = {"model": weights, "optimizer": state}
        if not load:
            dcp.save(content, checkpoint_id=folder / name)
        elif name != "by element":
            with pytest.raises(dcp.api.CheckpointException, match="Size mismatch between saved"):
                dcp.load(content, checkpoint_id=folder / name)
            continue
        else:
            dcp.load(content, checkpoint_id=folder / name)
            set_state_dict(
                model, optimizer, model_state_dict=weights, optim_state_dict=content["optimizer"]
            )
        (held,) = optimizer.full_precision_state_dict()["state"].values()
        whole = [held[key].full_tensor() for key in ("exp_avg", "exp_avg_sq")]
        if not load and rank == 0:
            torch.save(whole, folder / f"{name}.whole")
        elif load:
            assert_equal(whole, torch.load(folder / f"{name}.whole"))


@pytest.mark.full
def test_for_another_number_of_ranks_it_is_exact_or_refused(tmp_path):
    on_ranks(2, resharded, tmp_path, tmp_path, False)
    for count in (1, 3):
        on_ranks(count, resharded, tmp_path, tmp_path, True)
