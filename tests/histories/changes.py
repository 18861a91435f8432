"""What torch lets a user do to an optimizer between two steps.

Each change is given the world and a source of random choices. One that torch or we must refuse
says so by `world.doubt`, and the parameters in doubt are begun anew after a refused step.
"""

import contextlib
import copy
import gc
import io
import pickle

import numpy as np
import torch

from spectramind_fused.optim import Options
from spectramind_fused.stepping.options import (
    EMA_DECAY,
    EMA_DTYPE,
    LOOKAHEAD_ALPHA,
    LOOKAHEAD_K,
    LOW_PRECISION_MIN_SIZE,
    MASTER_WEIGHTS,
    STATE_DTYPE,
    STOCHASTIC_ROUNDING,
)
from tests.oracle import NUMBERS

CHANGES = {}


def change(function):
    CHANGES[function.__name__] = function
    return function


def a_state(world, rng):
    """A parameter that has a state, and the state; None where there is none."""
    having = [p for p in world.params if world.optimizer.state.get(p)]
    if not having:
        return None, None
    p = rng.choice(having)
    return p, world.optimizer.state[p]


def of_a_storage(name):
    """Whether an entry is held in fewer bits, or beside what is."""
    return name.endswith(("_codes", "_scales")) or name.startswith("master_")


def a_plain_entry(world, rng):
    """As `an_entry`, of those that torch has too."""
    p, state, name = an_entry(world, rng)
    return (None, None, None) if p is None or of_a_storage(name) else (p, state, name)


def an_entry(world, rng):
    """A parameter, its state and the name of a tensor in it; None where there is none."""
    p, state = a_state(world, rng)
    names = sorted(name for name, v in (state or {}).items() if torch.is_tensor(v))
    return (p, state, rng.choice(names)) if names else (None, None, None)


# Groups and parameters


@change
def nothing(world, rng):
    pass


@change
def a_group_is_added(world, rng):
    if len(world.params) < 7:
        world.optimizer.add_param_group({"params": [world.new_param(rng)], "lr": 0.05})


@change
def a_parameter_is_replaced(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    if group["params"]:
        at = rng.randrange(len(group["params"]))
        world.optimizer.state.pop(group["params"][at], None)
        group["params"][at] = world.new_param(rng)


@change
def a_parameter_moves_to_another_group(world, rng):
    giving, taking = (rng.choice(world.optimizer.param_groups) for _ in range(2))
    if giving["params"]:
        param = giving["params"].pop(rng.randrange(len(giving["params"])))
        taking["params"].insert(rng.randrange(len(taking["params"]) + 1), param)
        world.doubt(param, giving.get("use_muon") != taking.get("use_muon"))


@change
def a_parameter_leaves(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    if group["params"] and len(world.params) > 2:
        world.optimizer.state.pop(group["params"].pop(0), None)


@change
def frozen_or_thawed(world, rng):
    p = rng.choice(world.params)
    p.requires_grad_(not p.requires_grad)
    p.grad = None


# Where a parameter lies


@change
def data_is_cloned(world, rng):
    p = rng.choice(world.params)
    p.data = p.data.clone()


@change
def data_moves_into_a_larger_storage(world, rng):
    p = rng.choice(world.params)
    at = rng.randrange(1, 4)
    larger = torch.zeros(p.numel() + 9, dtype=p.dtype)
    moved = larger[at : at + p.numel()].view(p.shape)
    moved.copy_(p.detach())
    p.data = moved
    world.guard(larger, at, p.numel())


@change
def data_is_transposed(world, rng):
    p = rng.choice(world.params)
    if p.dim() > 1:
        world.doubt(p, p.shape[0] != p.shape[1])
        p.data = p.data.transpose(0, 1)


@change
def data_is_cut(world, rng):
    p = rng.choice(world.params)
    if p.dim() and p.shape[0] > 1:
        world.doubt(p)
        p.data = p.data[:-1]


@change
def data_has_gaps(world, rng):
    p = rng.choice(world.params)
    if p.dim():
        larger = torch.full((*p.shape[:-1], 2 * p.shape[-1]), 7.0, dtype=p.dtype)
        larger[..., ::2] = p.detach()
        p.data = larger[..., ::2]


@change
def data_is_negated(world, rng):
    p = rng.choice(world.params)
    if not world.shares(p):  # what a copy keeps of both at once differs
        p.data = torch._neg_view(p.data)


@change
def data_is_cast(world, rng):
    p = rng.choice(world.params)
    p.data = p.data.to(rng.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    p.grad = None


@change
def data_is_read_as_another_dtype(world, rng):
    p = rng.choice(world.params)
    plain = p.dtype == torch.float32 and p.dim() and p.stride(-1) == 1 and not p.is_neg()
    if plain and not world.shares(p):
        world.doubt(p)
        p.data.zero_()
        p.data = p.data.view(torch.bfloat16)
        if rng.random() < 0.5:
            p.data = p.data[..., : p.shape[-1] // 2]


@change
def data_is_set(world, rng):
    p = rng.choice(world.params)
    if p.dtype == torch.float32:
        with torch.no_grad():
            p.set_(torch.randn(p.shape))


@change
def data_is_swapped(world, rng):
    p = rng.choice(world.params)
    if p.requires_grad and p.is_leaf:
        p.grad = None
        torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().clone() + 1))


@change
def data_is_shared_with_processes(world, rng):
    rng.choice(world.params).data.share_memory_()


@change
def data_is_that_of_another(world, rng):
    p, q = (rng.choice(world.params) for _ in range(2))
    same = p.shape == q.shape and p.dtype == q.dtype and wide_enough(p)
    if same and not overlaps(q) and not q.is_neg():
        p.data = q.data


@change
def memory_is_taken_away(world, rng):
    p = rng.choice(world.params)
    tensor = rng.choice([p, p.grad])
    if p.grad is not None and tensor.numel():
        world.doubt(p, dead=True)
        tensor.untyped_storage().resize_(0)


def wide_enough(p):
    return p.dtype in (torch.float32, torch.float64)


def overlaps(p):
    return any(stride == 0 for stride in p.stride())


# States


@change
def states_are_forgotten(world, rng):
    world.optimizer.state.clear()


@change
def a_state_is_forgotten(world, rng):
    p, _ = a_state(world, rng)
    world.optimizer.state.pop(p, None)


@change
def an_entry_is_forgotten(world, rng):
    p, state, name = an_entry(world, rng)
    if p is not None:
        world.doubt(p, name not in ("slow_weights", "ema_weights"))
        del state[name]


@change
def states_move(world, rng):
    """The common recipe for putting them on another device."""
    for state in world.optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.data = value.data.clone()


@change
def an_entry_moves(world, rng):
    _, state, name = an_entry(world, rng)
    if state:
        state[name].set_(state[name].clone())


@change
def an_entry_is_replaced(world, rng):
    _, state, name = a_plain_entry(world, rng)
    if state and name not in NUMBERS:
        state[name] = torch.rand_like(state[name])


@change
def an_entry_is_cast(world, rng):
    _, state, name = a_plain_entry(world, rng)
    if state and name not in NUMBERS:
        state[name] = state[name].to(rng.choice([torch.float32, torch.bfloat16, torch.float64]))


@change
def an_entry_is_transposed(world, rng):
    p, state, name = a_plain_entry(world, rng)
    if state and state[name].dim() == 2:
        world.doubt(p, state[name].shape[0] != state[name].shape[1])
        state[name].t_()


@change
def an_entry_is_negated(world, rng):
    _, state, name = an_entry(world, rng)
    signed = ("exp_avg", "momentum_buffer", "slow_weights", "ema_weights")
    if state and name in signed and not world.shares(state[name]):
        state[name] = torch._neg_view(state[name])


@change
def an_entry_has_another_shape(world, rng):
    p, state, name = an_entry(world, rng)
    if state:
        world.doubt(p)
        state[name] = torch.zeros(3, 5)


@change
def entries_are_exchanged(world, rng):
    p, state = a_state(world, rng)
    if p is not None and {"exp_avg", "exp_avg_sq"} <= state.keys():
        first, second = state["exp_avg"].abs_(), state["exp_avg_sq"]
        rest = {k: v for k, v in state.items() if k not in ("exp_avg", "exp_avg_sq")}
        world.optimizer.state[p] = {"exp_avg_sq": first, "exp_avg": second, **rest}


@change
def an_entry_is_that_of_another(world, rng):
    p, state, name = a_plain_entry(world, rng)
    q, other, same = a_plain_entry(world, rng)
    if p is None or name in {*NUMBERS, "slow_weights", "ema_weights"}:
        return
    if q is None:
        return
    fits = state[name].shape == other[same].shape and state[name].dtype == other[same].dtype
    alike = same == name and p.dtype == q.dtype == state[name].dtype
    if fits and alike and wide_enough(p) and not state[name].is_neg():
        other[same] = state[name]


@change
def states_are_shared_with_processes(world, rng):
    for state in world.optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.share_memory_()


@change
def a_counter_is_set(world, rng):
    _, state = a_state(world, rng)
    if state and "step" in state:
        # SGD's own counter is 0 only before the first step
        torchs_is_nan = world.kind in ("Adagrad", "RAdam")  # it has 0 * inf
        most = 2**40 if torchs_is_nan else float("inf")
        count = rng.choice(
            [int("momentum_buffer" in state), 1, 7, 2**24 - 1, 2**24 + 3, 2**40, most]
        )
        state["step"] = rng.choice([
            float(count),
            torch.tensor(float(count)),
            torch.tensor(float(count), dtype=torch.float64),
        ])  # fmt: skip


@change
def a_number_is_set(world, rng):
    _, state = a_state(world, rng)
    for name in sorted(state.keys() & (NUMBERS - {"step"})) if state else ():
        value = rng.choice([0.25, 0.5])
        state[name] = rng.choice([torch.tensor(value), torch.tensor(value, dtype=torch.float64)])


@change
def a_counter_is_damaged(world, rng):
    p, state = a_state(world, rng)
    if state and "step" in state:
        world.doubt(p)
        bad = [torch.empty(0), torch.zeros(3), torch.tensor(-5.0), torch.tensor(float("nan"))]
        state["step"] = rng.choice(bad)


# Options


@change
def lr_changes(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    value = rng.choice([0.0, 0.01, 0.1])
    group["foreach"] = None
    none = world.kind in ("Lion", "RAdam", "Rprop")  # torch's take no array
    array = value if none else np.array(value)
    group["lr"] = rng.choice([
        value, torch.tensor(value), torch.tensor(value, dtype=torch.float64), np.float64(value),
        torch._neg_view(torch.tensor(-value)), array,
    ])  # fmt: skip
    gc.collect(0)


@change
def lr_changes_in_place(world, rng):
    for group in world.optimizer.param_groups:
        if torch.is_tensor(group["lr"]) and not group["lr"].is_neg():
            group["lr"].fill_(rng.choice([0.02, 0.2]))
        elif isinstance(group["lr"], np.ndarray):
            group["lr"][...] = rng.choice([0.02, 0.2])


@change
def lookahead_changes(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    group[LOOKAHEAD_K] = rng.choice([0, 1, 2, 5])
    group[LOOKAHEAD_ALPHA] = rng.choice([0.2, 0.5, 1.0])


@change
def the_average_changes(world, rng):
    rng.choice(world.optimizer.param_groups)[EMA_DECAY] = rng.choice([None, 0.5, 0.9])


@change
def the_clip_changes(world, rng):
    world.optimizer.clip_grad_norm = rng.choice([None, 0.5, float("inf")])


@change
def what_states_are_kept_in_changes(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    low = ["bfloat16", "int8"] if type(world.optimizer).algorithm.has_moments(group) else []
    group[STATE_DTYPE] = rng.choice([None, "float32", *low, *low])
    group[LOW_PRECISION_MIN_SIZE] = rng.choice([0, 20, 4096])


@change
def what_weights_are_kept_in_changes(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    group[EMA_DTYPE] = rng.choice([None, "float32", "bfloat16"])
    group[LOW_PRECISION_MIN_SIZE] = rng.choice([0, 20, 4096])


@change
def masters_change(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    group[MASTER_WEIGHTS] = rng.choice([None, "split", "split", "float32"])


@change
def rounding_changes(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    group[STOCHASTIC_ROUNDING] = rng.choice([False, True])


@change
def sixteen_bit_data_is_written_to(world, rng):
    """By whoever does not know of what is kept beside it."""
    for p in world.params:
        if p.dtype in (torch.bfloat16, torch.float16) and rng.random() < 0.5:
            with torch.no_grad():
                p[...] = p + (torch.rand(p.shape) < 0.1)


@change
def everything_is_loaded_in_full_precision(world, rng):
    world.load(world.optimizer.full_precision_state_dict())


@change
def zeroing_changes(world, rng):
    world.optimizer.zero_grads = not world.optimizer.zero_grads


@change
def options_of_the_rule_change(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    group["weight_decay"] = rng.choice([0.0, 0.1])
    group["maximize"] = rng.choice([False, True])
    # torch's foreach step takes no tensor for lr, and with nesterov writes into gradients
    plain = type(group["lr"]) is float and not group.get("nesterov")
    group["foreach"] = rng.choice([None, None, True]) if plain else None


@change
def an_option_is_out_of_range(world, rng):
    group = rng.choice(world.optimizer.param_groups)
    key, value = rng.choice([
        (LOOKAHEAD_K, -3), (EMA_DECAY, 9.0), (LOOKAHEAD_ALPHA, -1.0), (EMA_DTYPE, "int8"),
        (STATE_DTYPE, "int4"), (MASTER_WEIGHTS, "bfloat16"), (STOCHASTIC_ROUNDING, 2),
    ])  # fmt: skip
    kept = dict(group)
    group[key] = value
    world.must_refuse(ValueError, f"Invalid {key.removeprefix('spectramind_')}")
    del group[key]
    group.update(kept)


@change
def a_scaler_asks(world, rng):
    world.optimizer.grad_scale = torch.tensor(rng.choice([1.0, 4.0]))
    world.optimizer.found_inf = torch.tensor(rng.choice([0.0, 0.0, 1.0]))


# Copies and checkpoints


@change
def the_optimizer_is_copied(world, rng):
    copied = copy.deepcopy if rng.random() < 0.5 else lambda o: pickle.loads(pickle.dumps(o))
    before = world.params
    try:
        world.optimizer = copied(world.optimizer)
    except KeyError:
        assert world.doubted  # torch's own __setstate__ misses the step
        return
    doubted = {id(p) for p in world.doubted}
    after = world.params
    world.doubted = [q for p, q in zip(before, after, strict=True) if id(p) in doubted]


@change
def a_checkpoint_is_loaded(world, rng):
    if rng.random() < 0.5:
        file = io.BytesIO()
        torch.save(world.optimizer.state_dict(), file)
        file.seek(0)
        world.load(torch.load(file, weights_only=False))
    else:
        world.load(world.optimizer.state_dict())


@change
def a_checkpoint_of_torchs_is_loaded(world, rng):
    theirs = world.torch_class(
        [{"params": [p.detach().clone() for p in g["params"]],
          **{name: g[name] for name in {"use_muon"} & g.keys()}}
         for g in world.optimizer.param_groups if g["params"]] or [torch.zeros(1, 1)],
        **world.options)  # fmt: skip
    if len(theirs.param_groups) == len(world.optimizer.param_groups):
        for group in theirs.param_groups:
            for p in group["params"]:
                p.grad = torch.rand_like(p)
        theirs.step()
        world.load(theirs.state_dict())


# Errors


class Interrupted(Exception):
    pass


def raises(*_):
    raise Interrupted


@change
def a_hook_raises(world, rng):
    hook = world.optimizer.register_step_pre_hook(raises)
    with contextlib.suppress(Interrupted):
        world.optimizer.step()
    hook.remove()


@change
def a_closure_raises(world, rng):
    with contextlib.suppress(Interrupted):
        world.optimizer.step(raises)


@change
def averages_are_looked_at(world, rng):
    if any(Options.of(group).ema_decay is not None for group in world.optimizer.param_groups):
        before = [p.detach().clone() for p in world.params]
        with contextlib.suppress(Interrupted, ValueError), world.optimizer.ema_weights():
            if rng.random() < 0.5:
                raises()
        for p, b in zip(world.params, before, strict=True):
            world.same(p.detach(), b)
