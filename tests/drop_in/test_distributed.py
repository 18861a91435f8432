"""Several processes on torch's own engine: DDP, FSDP2, ZeroRedundancyOptimizer, over gloo.

Every rank trains the sharded model on its part of the batch, and a whole one on all of it.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from spectramind_fused import FusedAdamW, FusedMuon
from spectramind_fused.stepping import fingerprint
from tests.oracle import CLASSES, KINDS_OF_STATE, Reference
from tests.ranks import TAIL, assert_same, backward, inputs_of, model, on_ranks, sharded

pytestmark = [
    pytest.mark.cpu,  # gloo's
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
]

# DDP


def trained_by_ddp(rank):
    for kind, options in KINDS_OF_STATE.items():
        for backend in ("cpu", "eager"):
            whole = model()
            network = DistributedDataParallel(model(), gradient_as_bucket_view=True)
            params = list(network.parameters())
            optimizer = CLASSES[kind][0](params, backend=backend, **options, **TAIL)
            reference = Reference(kind, list(whole.parameters()), **options, **TAIL)
            for step in range(4):
                inputs = torch.randn(2, 5, 8)  # the same on both ranks
                backward(network, inputs[rank])
                backward(whole, inputs.flatten(0, 1))
                optimizer.step()
                reference.step()
                assert_same(params, whole.parameters(), f"{kind}, {backend}, step {step}")
            on_all = [torch.empty_like(params[0]) for _ in range(2)]
            dist.all_gather(on_all, params[0].detach())
            assert torch.equal(*on_all)


def test_ddp_trains_as_one_process_does(tmp_path):
    on_ranks(2, trained_by_ddp, tmp_path)


# FSDP2


def trained_by_fsdp(rank):
    mesh = init_device_mesh("cpu", (2,))
    for kind, options in KINDS_OF_STATE.items():
        for backend in ("cpu",) if kind == "Rprop" else ("cpu", "eager"):  # torch's steps no parts
            for dim in (0, 1):
                check_fsdp(rank, mesh, kind, options, backend, dim)


def check_fsdp(rank, mesh, kind, options, backend, dim=0):
    whole, network = model(), sharded(mesh, dim)
    optimizer = CLASSES[kind][0](network.parameters(), backend=backend, **options, **TAIL)
    reference = Reference(kind, list(whole.parameters()), **options, **TAIL)
    for step in range(4):
        inputs = torch.randn(mesh.size(), 5, 8)
        backward(network, inputs[rank])
        backward(whole, inputs.flatten(0, 1))
        norm = nn.utils.get_total_norm([p.grad for p in whole.parameters()])
        assert norm > TAIL["clip_grad_norm"]
        optimizer.step()
        reference.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
        what = f"{kind}, {backend}, split along {dim}, step {step}"
        assert_same(network.parameters(), whole.parameters(), what)
    averages = [optimizer.state[p]["ema_weights"] for p in network.parameters()]
    assert_same(averages, reference.average, f"{kind}, {backend}: averages")
    if backend == "cpu":  # kernels serve all of them
        assert optimizer.backends() == {"cpu": "cpu"}
        assert not optimizer.describe_plan().eager


def test_fsdp_trains_as_one_process_does(tmp_path):
    on_ranks(2, trained_by_fsdp, tmp_path)


def trained_by_hybrid_fsdp(rank):
    """Replicas of parts: the norm counts each part once."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "parts"))
    for backend in ("cpu", "eager"):
        check_fsdp(rank, mesh, "AdamW", KINDS_OF_STATE["AdamW"], backend)


def test_replicas_of_parts_are_counted_once(tmp_path):
    on_ranks(4, trained_by_hybrid_fsdp, tmp_path)


def trained_by_fsdp_over_tensor_parallel(rank):
    """Parts of parts: FSDP2 splits what tensor parallelism has split, along the same dimension."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for backend, storages in (("cpu", {}), ("eager", {}), ("cpu", {"state_dtype": "int8"})):
        options = {**TAIL, **storages, "low_precision_min_size": 0}
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
        network = copy.deepcopy(whole)
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(network, mesh["tensor"], plan)
        fully_shard(network, mesh=mesh["data"])
        optimizer = FusedAdamW(network.parameters(), lr=0.01, backend=backend, **options)
        one = FusedAdamW(whole.parameters(), lr=0.01, backend="cpu", **options)
        for _ in range(3):
            inputs = torch.randn(2, 5, 8)
            backward(network, inputs[rank // 2])
            backward(whole, inputs.flatten(0, 1))
            optimizer.step()
            one.step()
            apart = 1e-3 if storages else 1e-6  # groups of 32 elements begin elsewhere in parts
            torch.testing.assert_close(optimizer.grad_norm, one.grad_norm, rtol=apart, atol=1e-6)
            if not storages:
                assert_same(network.parameters(), whole.parameters(), backend)
        kinds = {type(of).__name__ for p in network.parameters() for of in p.placements}
        assert "_StridedShard" in kinds


def test_parts_of_parts_are_counted_once(tmp_path):
    on_ranks(4, trained_by_fsdp_over_tensor_parallel, tmp_path)


def stepped_beside_torch(rank):
    """Torch's optimizer and ours on two sharded models, from the same gradients."""
    mesh = init_device_mesh("cpu", (2,))
    for kind, options in KINDS_OF_STATE.items():
        if kind in ("Lion", "Rprop"):  # torch has no Lion, and its Rprop steps no parts
            continue
        ours, theirs = sharded(mesh), sharded(mesh)
        mine = CLASSES[kind][0](ours.parameters(), **options)
        other = CLASSES[kind][1](theirs.parameters(), foreach=False, **options)
        for step in range(4):
            inputs = torch.randn(2, 5, 8)[rank]
            for network, optimizer in ((ours, mine), (theirs, other)):
                backward(network, inputs)
                optimizer.step()
            both = zip(ours.parameters(), theirs.parameters(), strict=True)
            for p, e in both:
                torch.testing.assert_close(p.to_local(), e.to_local(), msg=f"{kind}, step {step}")
        for p, e in zip(ours.parameters(), theirs.parameters(), strict=True):
            for key, value in other.state[e].items():
                held = mine.state[p][key]
                assert type(held) is type(value), key
                assert held.shape == value.shape, key


def test_fsdp_steps_as_torch_optim_does(tmp_path):
    on_ranks(2, stepped_beside_torch, tmp_path)


def mixed_with_whole_and_eager_parameters(rank):
    """The norm is over sharded, whole, sparse and complex ones, in one optimizer."""
    mesh = init_device_mesh("cpu", (2,))
    network = sharded(mesh)
    others = [torch.ones(4, 2), torch.ones(3, dtype=torch.complex64)]
    others = [p.requires_grad_() for p in others]
    optimizer = CLASSES["SGD"][0]([*others, *network.parameters()], lr=0.1, clip_grad_norm=0.1)
    backward(network, torch.ones(5, 8))
    others[0].grad = torch.sparse_coo_tensor([[1]], [[3.0, 4.0]], (4, 2), check_invariants=True)
    others[1].grad = torch.full((3,), 2j, dtype=torch.complex64)
    squares = sum(p.grad.full_tensor().square().sum() for p in network.parameters())
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm, (squares + 25 + 12).sqrt())


def test_sharded_and_whole_parameters_share_one_norm(tmp_path):
    on_ranks(2, mixed_with_whole_and_eager_parameters, tmp_path)


def not_yet_summed(rank):
    mesh = init_device_mesh("cpu", (1,))
    parts = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    param = nn.Parameter(parts)
    optimizer = CLASSES["AdamW"][0]([param])
    assert "still to be summed" in optimizer.why_eager(optimizer.param_groups[0], param)


def refuses_parts(rank):
    mesh = init_device_mesh("cpu", (2,))
    for placement, shape in ((Shard(0), (6, 4)), (Shard(1), (6, 4)), (Shard(0), (8,))):
        whole = torch.ones(3, requires_grad=True)
        part = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [placement]))
        optimizer = CLASSES["Adafactor"][0]([whole, part])
        whole.grad, part.grad = torch.ones(3), torch.ones_like(part)
        with pytest.raises(RuntimeError, match=r"FusedAdafactor steps whole tensors, .* is split"):
            optimizer.step()
        assert torch.equal(whole, torch.ones(3))
        assert not optimizer.state
    replica = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Replicate()]))
    twin = torch.ones(6, 4, requires_grad=True)
    replica.grad, twin.grad = torch.ones_like(replica), torch.ones(6, 4)
    for param in (replica, twin):
        CLASSES["Adafactor"][0]([param], lr=0.1).step()
    torch.testing.assert_close(replica.full_tensor(), twin)


def test_a_rule_that_measures_whole_tensors_refuses_parts(tmp_path):
    """Torch's Adafactor fails in the middle of a step there, or takes a part for the whole."""
    on_ranks(2, refuses_parts, tmp_path)


def test_a_parameter_that_is_still_to_be_summed_is_left_to_torch(tmp_path):
    on_ranks(1, not_yet_summed, tmp_path)


def states_that_lie_otherwise(rank):
    """Kernels would take a state's elements for those of the parameter at the same place."""
    mesh = init_device_mesh("cpu", (1,))
    other_mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
    split = [Shard(0)]
    begun = torch.randn(4, 3)
    transposed = begun.t().contiguous().t()
    states = {
        "as the parameter": DTensor.from_local(begun.clone(), mesh, split),
        "transposed": DTensor.from_local(transposed, mesh, split),
        "by columns": DTensor.from_local(begun.clone(), mesh, [Shard(1)]),
        "on another mesh": DTensor.from_local(begun.clone(), other_mesh, [Shard(0), Replicate()]),
        "plain": begun.clone(),
    }
    for name, state in states.items():
        param = nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, split))
        twin = nn.Parameter(torch.ones(4, 3))
        ours, theirs = CLASSES["SGD"]
        optimizer, reference = ours([param], lr=0.1, momentum=0.9), theirs([twin], 0.1, 0.9)
        optimizer.state[param] = {"momentum_buffer": state, "step": torch.tensor(1.0)}
        reference.state[twin] = {"momentum_buffer": begun.clone()}
        param.grad, twin.grad = torch.ones_like(param), torch.ones(4, 3)
        try:
            optimizer.step()
        except RuntimeError:
            assert name in ("by columns", "on another mesh", "plain")  # torch refuses it as well
            continue
        reference.step()
        assert bool(optimizer.describe_plan().eager) == (name != "as the parameter"), name
        held = optimizer.state[param]["momentum_buffer"]
        mine = [param, held]
        assert all(isinstance(tensor, DTensor) for tensor in mine), name
        assert_same(mine, [twin, reference.state[twin]["momentum_buffer"]], name)


def test_states_of_dtensors_that_lie_otherwise_are_followed_or_refused(tmp_path):
    on_ranks(1, states_that_lie_otherwise, tmp_path)


def looked_at_in_c(rank):
    """What a fingerprint notices of tensors that are split, beside what it does of others."""
    mesh, split = init_device_mesh("cpu", (1,)), [Shard(0)]
    whole = torch.randn(4, 3)
    params = [nn.Parameter(DTensor.from_local(whole.clone(), mesh, split)) for _ in range(3)]
    twins = [nn.Parameter(whole.clone()) for _ in params]
    optimizer, reference = CLASSES["AdamW"][0](params), CLASSES["AdamW"][1](twins)

    def step(**of_first):
        for i, (p, t) in enumerate(zip(params, twins, strict=True)):
            t.grad = torch.randn(4, 3)
            p.grad = DTensor.from_local(t.grad.clone(), mesh, split)
            if i == 0 and "grad" in of_first:
                p.grad = of_first["grad"](t.grad)
        plan = optimizer._plan
        optimizer.step()
        reference.step()
        assert_same(params, twins, "the parameters")
        return optimizer._plan is plan

    step()
    assert step()
    assert isinstance(optimizer._plan._built_on._seen, fingerprint._SeenInC)
    equal = [Shard(0)]  # another list of another object
    assert step(grad=lambda grad: DTensor.from_local(grad.clone(), mesh, equal))
    assert not step(grad=lambda grad: DTensor.from_local(grad.clone(), mesh, [Partial()]))
    assert not step()
    for change in (
        lambda: setattr(params[1], "_local_tensor", params[1]._local_tensor.clone()),
        lambda: params[1]._local_tensor.set_(params[1]._local_tensor.clone()),
        lambda: optimizer.state[params[2]].update(
            exp_avg=DTensor.from_local(
                optimizer.state[params[2]]["exp_avg"].full_tensor().clone(), mesh, split
            )
        ),
    ):
        held = [params[1]._local_tensor, optimizer.state[params[2]]["exp_avg"]]
        change()
        assert not step()
        assert step()
        del held


def absent_with_another_dtype(rank):
    """A gradient in bfloat16, none while another plan is built, then one in float32."""
    mesh, split = init_device_mesh("cpu", (1,)), [Shard(0)]

    def ones(dtype):
        return DTensor.from_local(torch.ones(4, dtype=dtype), mesh, split)

    params = [nn.Parameter(DTensor.from_local(torch.zeros(4), mesh, split)) for _ in range(3)]
    for p in params:
        p.grad_dtype = None
    optimizer = CLASSES["SGD"][0](params, lr=1.0)
    params[0].grad, params[1].grad = ones(torch.bfloat16), ones(torch.float32)
    optimizer.step()
    optimizer.step()
    params[0].grad, params[2].grad = None, ones(torch.float32)
    optimizer.step()
    params[0].grad = ones(torch.float32)
    optimizer.step()
    assert params[0].full_tensor().tolist() == [-3.0] * 4
    assert params[1].full_tensor().tolist() == [-4.0] * 4


def test_a_split_gradient_may_come_back_in_another_dtype(tmp_path):
    on_ranks(1, absent_with_another_dtype, tmp_path)


def test_what_changes_in_tensors_that_are_split_is_noticed(tmp_path):
    on_ranks(1, looked_at_in_c, tmp_path)


# ZeroRedundancyOptimizer


def zero(*arguments, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    return ZeroRedundancyOptimizer(*arguments, **options)


def trained_by_zero(rank, folder):
    for kind, options in KINDS_OF_STATE.items():
        whole, network = model(), model()
        params = list(network.parameters())
        cls = CLASSES[kind][0]
        tail = {**TAIL, "norm_group": "world"}
        optimizer = zero(params, cls, **options, **tail)
        reference = Reference(kind, list(whole.parameters()), **options, **TAIL)
        for step in range(4):
            if step == 2:  # the state as one, into another optimizer of the same kind
                optimizer.consolidate_state_dict(0)
                held = [optimizer.state_dict() if rank == 0 else None]
                dist.broadcast_object_list(held)
                if rank == 0:
                    torch.save({"model": network.state_dict(), "optimizer": held[0]}, folder / kind)
                optimizer = zero(params, cls, **options, **tail)
                optimizer.load_state_dict(held[0])
            for each in (network, whole):  # as after DDP's all-reduce
                backward(each, inputs_of(step))
            optimizer.step()
            reference.step()
            norm = reference_norm = nn.utils.get_total_norm([p.grad for p in whole.parameters()])
            torch.testing.assert_close(optimizer.optim.grad_norm, reference_norm)
            assert norm > TAIL["clip_grad_norm"]
            assert_same(params, whole.parameters(), f"{kind}, step {step}")
        steps = [float(s["step"]) for s in optimizer.optim.state.values()]
        assert steps == [4.0] * len(steps)


def test_zero_redundancy_clips_over_all_ranks_and_resumes(tmp_path):
    on_ranks(2, trained_by_zero, tmp_path, tmp_path)
    for kind, options in KINDS_OF_STATE.items():  # what it saved goes on in one process
        content = torch.load(tmp_path / kind, weights_only=True)
        network, whole = model(), model()
        network.load_state_dict(content["model"])
        optimizer = CLASSES[kind][0](network.parameters(), **options, **TAIL)
        optimizer.load_state_dict(content["optimizer"])
        reference = Reference(kind, list(whole.parameters()), **options, **TAIL)
        for step in range(4):
            for each in (network, whole):
                backward(each, inputs_of(step))
            reference.step()
            if step >= 2:
                optimizer.step()
        assert_same(network.parameters(), whole.parameters(), kind)


def zero_with_a_rank_that_has_nothing(rank):
    """One parameter for two ranks: the other one still says what the norm is."""
    param = torch.ones(5).requires_grad_()
    tail = {"clip_grad_norm": 1.0, "norm_group": "world"}
    optimizer = zero([param], CLASSES["SGD"][0], lr=1.0, **tail)
    param.grad = torch.ones(5)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.ones(5) * (1 - 5**-0.5))
    torch.testing.assert_close(optimizer.optim.grad_norm, torch.tensor(5.0).sqrt())
    optimizer.optim.norm_group = None  # from now on each rank by itself, and nothing left over
    optimizer.step()
    mine = (
        torch.tensor(5.0).sqrt() if optimizer.optim.param_groups[0]["params"] else torch.zeros(())
    )
    torch.testing.assert_close(optimizer.optim.grad_norm, mine)


def test_a_rank_without_parameters_takes_part_in_the_norm(tmp_path):
    on_ranks(2, zero_with_a_rank_that_has_nothing, tmp_path)


# Matrices


def trained_by_muon(rank):
    """Whole matrices go to kernels, parts of them to torch's own step; one norm over all."""
    mesh = init_device_mesh("cpu", (2,))
    for place, served in ((Replicate(), 3), (Shard(0), 2), (Shard(1), 1)):
        torch.manual_seed(0)
        shapes = ((8, 6), (4, 5, 3), (6,))  # a matrix, experts, and what AdamW steps
        wholes = [torch.randn(shape).requires_grad_() for shape in shapes]
        places = [place, place, Replicate() if place == Shard(1) else place]
        parts = [
            distribute(w, mesh, at).requires_grad_() for w, at in zip(wholes, places, strict=True)
        ]
        optimizers = [
            FusedMuon(
                [
                    {"params": params[:2], "batched": True},
                    {"params": params[2:], "use_muon": False, "lr": 0.01},
                ],
                lr=0.02, clip_grad_norm=0.5, ema_decay=0.9,
            )
            for params in (wholes, parts)
        ]  # fmt: skip
        for _ in range(3):
            for whole, part, at in zip(wholes, parts, places, strict=True):
                whole.grad = torch.randn(whole.shape)
                part.grad = distribute(whole.grad, mesh, at)
            for optimizer in optimizers:
                optimizer.step()
            torch.testing.assert_close(*(o.grad_norm for o in optimizers))
        for whole, part in zip(wholes, parts, strict=True):  # products of bfloat16, summed in parts
            torch.testing.assert_close(part.full_tensor(), whole, rtol=0, atol=0.01 * 0.02 * 3)
        plan = optimizers[1].describe_plan()
        assert 3 - len(plan.eager) == served
        if plan.eager:
            why = optimizers[1].why_eager(optimizers[1].param_groups[0], parts[0])
            assert "its matrices lie in parts on several ranks" in why


def distribute(tensor, mesh, place):
    return distribute_tensor(tensor.detach().clone(), mesh, [place])


def test_muon_gathers_what_lies_in_parts(tmp_path):
    on_ranks(2, trained_by_muon, tmp_path)
