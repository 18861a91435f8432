"""Anything that torch allows, in any order: every step is what torch would have done from there.

`pytest tests/histories` runs a fixed set of histories; `--soak N` runs N times as many others.
`make sanitize` runs them with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import random

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import spectramind_fused as ours
from spectramind_fused.optim.muon import Muon
from spectramind_fused.stepping.options import MASTER_WEIGHTS
from spectramind_fused.stepping.storage import CODES, MASTERS, PARAM, begun, read
from tests import draws
from tests.draws import examples
from tests.histories.changes import CHANGES
from tests.histories.oracle import OURS, expect
from tests.inputs import for_kind
from tests.oracle import WrittenOutLion

STEPS = 50  # transitions of one history
KINDS = {
    "AdamW": (ours.FusedAdamW, torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3}),
    "AMSGrad": (ours.FusedAdam, torch.optim.Adam,
                {"lr": 0.05, "eps": 1e-3, "amsgrad": True, "betas": (0.8, 0.6)}),
    "SGD": (ours.FusedSGD, torch.optim.SGD, {"lr": 0.05}),
    "momentum": (ours.FusedSGD, torch.optim.SGD,
                 {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "RMSprop": (ours.FusedRMSprop, torch.optim.RMSprop,
                {"lr": 0.01, "eps": 1e-2, "momentum": 0.5}),
    "NAdam": (ours.FusedNAdam, torch.optim.NAdam,
              {"lr": 0.05, "eps": 1e-3, "momentum_decay": 0.1}),
    "ASGD": (ours.FusedASGD, torch.optim.ASGD, {"lr": 0.05, "lambd": 0.1, "t0": 3.0}),
    "centered": (ours.FusedRMSprop, torch.optim.RMSprop,
                 {"lr": 0.01, "eps": 1e-1, "centered": True}),
    "RAdam": (ours.FusedRAdam, torch.optim.RAdam,
              {"lr": 0.05, "eps": 1e-2, "betas": (0.5, 0.8)}),
    "Adagrad": (ours.FusedAdagrad, torch.optim.Adagrad, {"lr": 0.05, "eps": 1e-2}),
    "Adamax": (ours.FusedAdamax, torch.optim.Adamax, {"lr": 0.05, "eps": 1e-2}),
    "Adadelta": (ours.FusedAdadelta, torch.optim.Adadelta, {"lr": 0.5, "rho": 0.5, "eps": 1e-2}),
    "Rprop": (ours.FusedRprop, torch.optim.Rprop, {"lr": 0.02}),
    "Lion": (ours.FusedLion, WrittenOutLion, {"lr": 0.02}),
    "Adafactor": (ours.FusedAdafactor, torch.optim.Adafactor, {"lr": 0.05, "eps": (1e-2, 1e-3)}),
    "Muon": (ours.FusedMuon, Muon, {"lr": 0.05, "ns_steps": 1}),
}  # fmt: skip
SHAPES = [(), (0,), (1,), (5,), (4, 4), (3, 2, 2, 1), (2100,), (40_000,)]
MATRICES = [(4, 4), (4, 4), (3, 7), (1, 5), (60, 20)]
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-4, torch.float64: 2e-4}


class World:
    """An optimizer, and what has been done to it since its last step."""

    def __init__(self, kind, rng):
        self.kind = kind
        self.fused_class, self.torch_class, self.options = KINDS[kind]
        self.doubted = []
        self.dead = False
        self.guards = []
        params = [self.new_param(rng) for _ in range(rng.randrange(2, 5))]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.1}]
        if kind == "Muon":
            groups.append({"params": [self.new_param(rng)], "use_muon": False, "eps": 1e-3})
        self.optimizer = self.fused_class(groups, **self.options)

    @property
    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def new_param(self, rng):
        dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        shapes = MATRICES if self.kind == "Muon" else for_kind(SHAPES, self.kind)
        return torch.nn.Parameter(torch.randn(rng.choice(shapes)).to(dtype))

    def doubt(self, param, really=True, dead=False):
        """A step may be refused for this parameter's sake; where memory is gone it must be."""
        if really:
            self.doubted.append(param)
        if dead:
            self.dead, self.guards = True, []

    def guard(self, storage, at, size):
        """Nothing of this storage but `size` elements from `at` on may ever be written."""
        outside = torch.cat([storage[:at], storage[at + size :]])
        self.guards = [*self.guards[-3:], (storage, at, size, outside)]

    def shares(self, tensor):
        """Whether more than one parameter or state lies in this storage."""
        there = tensor.untyped_storage().data_ptr()
        return sum(t.untyped_storage().data_ptr() == there for t, _ in self.values()) > 1

    def leave_out_masters(self):
        """Where no parameter could have one, the option is refused in words."""
        for group in self.optimizer.param_groups:
            dtypes = {p.dtype for p in group["params"]}
            split = group.get(MASTER_WEIGHTS) == "split"
            if torch.bfloat16 not in dtypes and (split or torch.float16 not in dtypes):
                group.pop(MASTER_WEIGHTS, None)
            elif split and torch.float16 in dtypes:
                group[MASTER_WEIGHTS] = "float32"

    def begin_anew(self, params):
        for p in params:
            p.data = torch.randn(p.shape if p.numel() < 50_000 else ())
            p.grad = None
            self.optimizer.state.pop(p, None)

    def load(self, saved):
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError:
            assert self.doubted, "a sound checkpoint was refused"

    def must_refuse(self, error, match):
        before = self.values()
        with pytest.raises(error, match=match):
            self.optimizer.step()
        self.unmoved(before)

    def values(self):
        """Parameters and states as they are, by object."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        held = [t for t in [*self.params, *states] if torch.is_tensor(t)]
        return [(t, t.detach().clone()) for t in held]

    def unmoved(self, before):
        for tensor, value in before:
            self.same(tensor.detach(), value)

    @staticmethod
    def same(tensor, value):
        torch.testing.assert_close(tensor, value, rtol=0, atol=0, equal_nan=True)

    def slack(self, param):
        """What Muon's products, in bfloat16, may move a parameter too far."""
        groups = self.optimizer.param_groups if self.kind == "Muon" else []
        lrs = [g["lr"] for g in groups for p in g["params"] if p is param and "betas" not in g]
        return 0.05 * float(lrs[0]) if lrs else 0.0

    @staticmethod
    def near(tensor, value, slack=0.0):
        bound = TOLERANCE[tensor.dtype] + slack
        value = value.to(tensor.dtype)
        torch.testing.assert_close(tensor.detach(), value, rtol=bound, atol=bound, equal_nan=True)

    @staticmethod
    def near_in_codes(tensor, value):
        """In 8 bits: within a step, of which the largest is 1/64 of the largest of its group."""
        bound = float(value.abs().max() / 50) if value.numel() else 0.0
        torch.testing.assert_close(tensor, value, rtol=0, atol=bound, equal_nan=True)

    def give_gradients(self, rng):
        """To some, lying anyhow; others keep what they have, or nothing."""
        shared = None
        for p in self.params:
            how = rng.choice(["new", "new", "new", "kept", "none", "turned", "spread", "view",
                              "negated", "shared"])  # fmt: skip
            new = torch.randn(p.shape).to(p.dtype)
            if how == "turned" and new.dim() == 2:
                new = torch.randn(p.shape[::-1]).to(p.dtype).t()
            elif how == "spread" and new.dim():
                new = torch.randn(p.shape[-1:]).to(p.dtype).expand(p.shape)
            elif how == "view":
                new = torch.randn(p.numel() + 3).to(p.dtype)[3:].view(p.shape)
            elif how == "negated":
                new = torch._neg_view(new)
            elif how == "shared":
                if shared is not None and (shared.shape, shared.dtype) == (p.shape, p.dtype):
                    new = shared
                shared = new
            if how == "none":
                p.grad = None
            elif how != "kept":
                p.grad = None
                p.grad = new

    def step(self):
        if self.dead:
            with pytest.raises(RuntimeError, match="has no memory"):
                self.optimizer.step()
            self.begin_anew(self.params)
            self.dead, self.doubted = False, []
            return
        expected = expect(self.optimizer, self.torch_class)
        before = self.values()
        grads = [None if p.grad is None else p.grad.detach().clone() for p in self.params]
        try:
            self.optimizer.step()
        except (RuntimeError, ValueError, KeyError) as error:
            if expected.error is None and not self.doubted:
                raise AssertionError("this step was to be taken") from error
            self.unmoved(before)
            self.begin_anew(self.doubted or self.params)
            self.doubted = []
        else:
            if expected.error is not None:
                assert self.doubted, f"torch refuses it: {expected.error!r}"
                self.begin_anew(self.doubted)
            else:
                self.compare(expected, before, grads)
            self.doubted = [p for p in self.doubted if p.grad is None]  # others took the step

    def compare(self, expected, before, grads):
        for i, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            if grad is not None:
                self.same(p.grad, torch.zeros_like(grad) if expected.zeroed else grad)
            if i in expected.params:
                state = self.optimizer.state.get(p, {})
                self.near(p, expected.params[i], self.slack(p))
                if MASTERS & state.keys():
                    self.near(read(PARAM, state, p), expected.params[i], self.slack(p))
                for name in OURS:  # an option that is off leaves nothing behind
                    assert begun(state, name) == (name in expected.states[i])
                for name, value in expected.states[i].items():
                    if name + CODES in state:
                        self.near_in_codes(read(name, state, p), value)
                    elif torch.is_tensor(value):
                        self.near(state[name], value, self.slack(p) if name in OURS else 0.0)
        if not expected.params:
            self.unmoved(before)
        for storage, at, size, outside in self.guards:
            self.same(torch.cat([storage[:at], storage[at + size :]]), outside)


class History(RuleBasedStateMachine):
    """One optimizer; each transition is a change, new gradients and a step."""

    @initialize(kind=st.sampled_from(sorted(KINDS)), luck=st.integers(0, 2**32))
    def begin(self, kind, luck):
        self.note(f"--- {kind} {luck}")
        torch.manual_seed(luck)
        self.world = World(kind, random.Random(luck))

    @rule(change=st.sampled_from(sorted(CHANGES)), luck=st.integers(0, 2**32))
    def transition(self, change, luck):
        self.note(f"{change} {luck}")
        torch.manual_seed(luck)
        rng = random.Random(luck)
        world = self.world
        if rng.random() < 0.8:
            world.give_gradients(rng)
        CHANGES[change](world, rng)
        world.leave_out_masters()
        world.step()
        vars(world.optimizer).pop("grad_scale", None)
        vars(world.optimizer).pop("found_inf", None)
        History.seen += 1

    seen = 0

    def note(self, line):
        """What was done last, for when the process dies of it."""
        if "HISTORY_FILE" in os.environ:
            with open(os.environ["HISTORY_FILE"], "w" if line.startswith("---") else "a") as file:
                print(line, file=file)


@pytest.mark.random
def test_any_history_of_changes_leaves_steps_that_torch_would_take(pytestconfig, record_property):
    transitions = pytestconfig.getoption("transitions")
    History.seen = 0
    options = examples(max(1, transitions // STEPS), stateful_step_count=STEPS)
    run_state_machine_as_test(History, settings=options)
    assert History.seen >= 0.5 * transitions * max(1, draws.rounds)
    record_property("summary", f"{History.seen} transitions of any history")
