"""Ranks that do not take the same step: a sentence on each, no hang, and nothing has moved."""

import datetime
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from spectramind_fused import FusedAdamW, FusedSGD
from tests.asserts import assert_equal
from tests.ranks import on_ranks

pytestmark = [
    pytest.mark.cpu,  # gloo's
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
]

OPTIONS = {"lr": 0.1, "clip_grad_norm": 1.0}
PARAMETERS, GRADIENTS, CHOICES = "the same parameters:", "have a gradient", "the same options"
REFUSED = "Rank 1 refused this step"


def params_of(mesh, dtype=torch.float32, rows=6):
    torch.manual_seed(0)
    parts = [torch.randn(rows // 2, 4, dtype=dtype) for _ in range(3)]
    return [  # without a word to the other rank, which may do otherwise
        nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False)) for part in parts
    ]


def give_gradients(params):
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, i + 1.0)


def of_all(params, **options):
    return FusedAdamW(params, **{**OPTIONS, **options})


def wider(param):
    part = torch.ones(4, 4)
    return nn.Parameter(DTensor.from_local(part, param.device_mesh, [Shard(0)], run_check=False))


# What an optimizer of one rank is built with, and what it says then.
BUILT_OTHERWISE = {
    "a parameter is frozen": (PARAMETERS, lambda ps: of_all(ps[:2])),
    "order": (PARAMETERS, lambda ps: of_all([wider(ps[0]), *ps[:2]])),
    "groups": (PARAMETERS, lambda ps: of_all([{"params": ps[:1]}, {"params": ps[1:]}])),
    "dtype": (PARAMETERS, lambda ps: of_all(params_of(ps[0].device_mesh, torch.bfloat16))),
    "shape": (PARAMETERS, lambda ps: of_all(params_of(ps[0].device_mesh, rows=8))),
    "lr": (CHOICES, lambda ps: of_all(ps, lr=0.2)),
    "clip_grad_norm": (CHOICES, lambda ps: of_all(ps, clip_grad_norm=2.0)),
    "zero_grads": (CHOICES, lambda ps: of_all(ps, zero_grads=True)),
    "lookahead": (CHOICES, lambda ps: of_all(ps, lookahead_k=2)),
    "average": (CHOICES, lambda ps: of_all(ps, ema_decay=0.9)),
    "state_dtype": (CHOICES, lambda ps: of_all(ps, state_dtype="bfloat16")),
}


def changed_lr(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.3


def no_gradient(optimizer, params):
    params[1].grad = None


def gradient_without_memory(optimizer, params):
    params[2].grad.to_local().untyped_storage().resize_(0)


def damaged_counter(optimizer, params):
    optimizer.state[params[0]]["step"].fill_(0.5)


def invalid_option(optimizer, params):
    optimizer.param_groups[0]["spectramind_lookahead_k"] = -1


# What happens on one rank after a step in common.
GONE_WRONG = {
    "another lr later": (CHOICES, None, changed_lr),
    "a gradient is None": (GRADIENTS, None, no_gradient),
    "a gradient without memory": (REFUSED, "no memory", gradient_without_memory),
    "a damaged counter": (REFUSED, "step counter", damaged_counter),
    "an option out of range": (REFUSED, "lookahead_k", invalid_option),
}


def kept(optimizer, params):
    held = [t for p in params for t in (p, *optimizer.state.get(p, {}).values())]
    return [(t.to_local() if hasattr(t, "to_local") else t).detach().clone() for t in held]


def assert_refused(optimizer, params, sentence):
    before = kept(optimizer, params)
    with pytest.raises((RuntimeError, ValueError), match=re.escape(sentence)):
        optimizer.step()
    assert_equal(kept(optimizer, params), before)
    optimizer.state_dict()


def differ(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    faults = 0
    for backend in ("cpu", "eager"):
        for sentence, build in BUILT_OTHERWISE.values():
            params = params_of(mesh)
            odd = build(params) if rank else of_all(params)
            odd.backend = backend
            mine = [p for group in odd.param_groups for p in group["params"]]
            give_gradients(mine)
            assert_refused(odd, mine, sentence)
            assert not odd.state
            faults += 1
    for sentence, own_sentence, go_wrong in GONE_WRONG.values():
        params, untouched = params_of(mesh), params_of(mesh)
        optimizer, reference = of_all(params), of_all(untouched)
        for number in range(2):
            for each, of_one in ((params, optimizer), (untouched, reference)):
                give_gradients(each)
                if number == 0 or each is untouched:
                    of_one.step()
        saved = optimizer.state_dict()
        saved = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, saved)
        if rank:
            go_wrong(optimizer, params)
        assert_refused(optimizer, params, own_sentence if rank and own_sentence else sentence)
        optimizer.load_state_dict(saved)  # mended: it goes on as if nothing had been
        optimizer.param_groups[0].pop("spectramind_lookahead_k", None)
        give_gradients(params)
        optimizer.step()
        assert_equal(kept(optimizer, params), kept(reference, untouched))
        faults += 1
    (folder / f"faults of rank {rank}").write_text(str(faults))


def test_ranks_that_differ_say_so_and_change_nothing(tmp_path, record_property):
    on_ranks(2, differ, tmp_path, tmp_path)
    counts = {path.read_text() for path in tmp_path.glob("faults of rank *")}
    (count,) = counts
    record_property("summary", f"{count} faults on one of two ranks")


def short_group():
    return dist.new_group(timeout=datetime.timedelta(seconds=2))


def late(rank):
    """A rank that takes no norm: the other one waits until its group's timeout, and says so."""
    groups = [short_group(), short_group()]
    mesh = DeviceMesh.from_group(groups[0], "cpu")
    split = params_of(mesh)
    whole = [torch.ones(5).requires_grad_()]
    cases = (
        (split, of_all(split, clip_grad_norm=None if rank else 1.0)),
        (whole, FusedSGD(whole, 1.0, clip_grad_norm=1.0, norm_group=groups[1])),
    )
    for params, optimizer in cases:
        give_gradients(params)
        if rank == 0:
            assert_refused(optimizer, params, "Another rank did not answer")
            assert not optimizer.state
            optimizer.clip_grad_norm = optimizer.norm_group = None
        elif params is split:
            optimizer.step()  # without a norm: it asks nobody
        dist.barrier()  # the other rank waits here
        give_gradients(params)
        optimizer.norm_group = optimizer.clip_grad_norm = None
        optimizer.step()


def test_a_rank_that_does_not_answer_ends_in_a_sentence(tmp_path):
    on_ranks(2, late, tmp_path)


def refused_in_a_pipeline(rank):
    """Each rank has other parameters: a refusal and another clip are told all the same."""
    param = torch.ones(5 + rank).requires_grad_()
    optimizer = FusedSGD([param], 1.0, clip_grad_norm=1.0 + rank, norm_group="world")
    give_gradients([param])
    assert_refused(optimizer, [param], CHOICES)
    optimizer.clip_grad_norm = 1.0
    if rank == 1:
        param.grad = torch.ones(5 + rank).to_sparse()
        optimizer = FusedAdamW([param], **OPTIONS, norm_group="world")
    assert_refused(optimizer, [param], "sparse" if rank == 1 else REFUSED)
    give_gradients([param])
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm, torch.tensor(5.0 + 6.0 + 7.0).sqrt())
    plans_alone(rank)
    refused_behind_another_sum(rank)


def plans_alone(rank):
    """One rank plans anew, with a scale that all have had since their first step."""
    params = [torch.ones(5).requires_grad_() for _ in range(2)]
    optimizer = FusedSGD(params, **OPTIONS, norm_group="world")
    for number in range(3):
        give_gradients(params if number == 2 and rank == 1 else params[:1])
        optimizer.grad_scale = torch.tensor(2.0) if number else None
        optimizer.step()


def refused_behind_another_sum(rank):
    """Ranks 0 and 1 split their parameters; only rank 1 shares another sum with rank 2."""
    stage, alone, pair = (dist.new_group(ranks) for ranks in ([0, 1], [0], [1, 2]))
    if rank == 2:
        params = [torch.ones(5).requires_grad_()]
    else:
        params = params_of(DeviceMesh.from_group(stage, "cpu"))
    optimizer = FusedAdamW(params, **OPTIONS, norm_group=pair if rank else alone)
    give_gradients(params)
    if rank == 0:
        gradient_without_memory(optimizer, params)
    refusals = ("no memory", "Rank 0 refused this step", REFUSED)
    assert_refused(optimizer, params, refusals[rank])
    give_gradients(params)
    optimizer.step()


def test_ranks_with_parameters_of_their_own_hear_of_a_refusal(tmp_path):
    on_ranks(3, refused_in_a_pipeline, tmp_path)
