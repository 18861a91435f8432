"""Random combinations of everything a step does: kernels, the eager oracle, plain torch, resume."""

import copy
import io
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectramind_fused as ours
from tests import place
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS
from tests.draws import examples
from tests.inputs import clones
from tests.oracle import CLASSES, NUMBERS, VARIANTS, torchs_options, total_norm

# In float64 the last bits of the norm show, which is summed in another order.
ULPS = {torch.float32: 16, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}
LARGEST_LR = 0.1
SCALERS = [
    None,
    (torch.amp.GradScaler, "step"),
    (ours.GradScaler, "step"),
    (torch.amp.GradScaler, "unscale, step"),
    (ours.GradScaler, "unscale, step"),
    (torch.amp.GradScaler, "unscale, clip, step"),
]


@dataclass
class Group:
    """Shapes, and what differs from group to group."""

    shapes: list
    options: dict


@dataclass
class Case:
    """One combination, and what happens to it."""

    kind: str
    options: dict
    dtype: torch.dtype
    groups: list
    clip: float | None
    scaler: tuple | None
    zero: bool
    steps: int
    bad: set = field(default_factory=set)  # steps with a gradient that is not finite
    absent: set = field(default_factory=set)  # steps in which the first parameter has none
    resumed_at: int = 1


def torch_can_scale(dtype, scaler, calls):
    """Torch's unscale_ refuses float16 gradients, and its scaler bfloat16 on GPUs."""
    if dtype == torch.bfloat16 and place.device == "cuda":
        return scaler is ours.GradScaler and calls == "step"
    return "unscale" not in calls or dtype != torch.float16


def case_of(variant, groups, **rest):
    """Torch's Adafactor takes no tensor without elements."""
    kind, options = variant
    if kind == "Adafactor":
        groups = [
            Group(shapes=[(2,) if 0 in s else s for s in g.shapes], options=g.options)
            for g in groups
        ]
    return Case(kind=kind, options=options, groups=groups, **rest)


def cases(dtypes):
    shapes = st.lists(
        st.sampled_from([(), (0,), (1,), (17,), (33, 17), (1025,), (5, 1, 3)]),
        min_size=1,
        max_size=3,
    )
    own = st.fixed_dictionaries(
        {
            "lr": st.sampled_from([0.0, 1e-3, LARGEST_LR]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "lookahead_k": st.sampled_from([0, 1, 2, 3]),
            "lookahead_alpha": st.sampled_from([0.0, 0.5, 0.8, 1.0]),
            "ema_decay": st.sampled_from([None, 0.0, 0.9, 1.0]),
        }
    )
    steps = st.sets(st.integers(0, 5), max_size=3)
    return st.builds(
        case_of,
        st.sampled_from(VARIANTS),
        dtype=st.sampled_from(dtypes),
        groups=st.lists(st.builds(Group, shapes, own), min_size=1, max_size=3),
        clip=st.sampled_from([None, 0.5, 100.0, math.inf]),
        scaler=st.sampled_from(SCALERS),
        zero=st.booleans(),
        steps=st.integers(2, 6),
        bad=steps,
        absent=steps,
        resumed_at=st.integers(1, 5),
    ).filter(lambda case: not case.scaler or torch_can_scale(case.dtype, *case.scaler))


def drawn(shape, generator):
    """On the CPU, so that everybody has the same wherever they are."""
    return torch.randn(shape, generator=generator, device="cpu").to(place.device)


def begin(case, generator):
    return [
        [drawn(s, generator).to(case.dtype).requires_grad_() for s in group.shapes]
        for group in case.groups
    ]


def build(case, params, backend):
    groups = [{"params": p, **g.options} for p, g in zip(params, case.groups, strict=True)]
    options = {"lr": 0.1, **case.options}
    return CLASSES[case.kind][0](
        groups, clip_grad_norm=case.clip, zero_grads=case.zero, backend=backend, **options
    )


def new_scaler(case):
    return case.scaler and case.scaler[0](place.device, init_scale=8.0, growth_interval=2)


def gradients(case, step, scale):
    """The same for everybody who asks; scaled as a backward would."""
    generator = torch.Generator().manual_seed(step)
    grads = []
    for group in case.groups:
        for shape in group.shapes:
            grads.append((drawn(shape, generator) * scale).to(case.dtype))
    largest = max(grads, key=torch.Tensor.numel)
    if case.scaler and step in case.bad and largest.numel():
        largest.view(-1)[step % largest.numel()] = (math.inf, -math.inf, math.nan)[step % 3]
    if step in case.absent:
        grads[0] = None
    return grads


def advance(case, optimizer, scaler, params, step):
    grads = gradients(case, step, scaler.get_scale() if scaler else 1.0)
    for p, grad in zip(params, grads, strict=True):
        p.grad = None if grad is None else grad.clone()
    if all(grad is None for grad in grads):
        return
    if scaler is None:
        optimizer.step()
    else:
        scaler.scale(torch.ones(()))
        if "unscale" in case.scaler[1]:
            scaler.unscale_(optimizer)
        if "clip" in case.scaler[1]:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        touched = [None if p.grad is None else p.grad.clone() for p in params]
        scaler.step(optimizer)
        scaler.update()
        grads = touched
    for p, grad in zip(params, grads, strict=True):
        if grad is not None:
            assert_equal([p.grad], [torch.zeros_like(grad) if case.zero else grad])


def flat(groups):
    return [p for group in groups for p in group]


class Agreement:
    """Compares step by step, relative to the largest value an element has had, or to the lr.

    A step of Adam is about the lr in size, and so is what its own rounding is relative to.
    """

    def __init__(self, dtype):
        self.dtype, self.largest = dtype, {}

    def check(self, name, actual, expected):
        """Pairs in which one side has nothing are left out."""
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if a is None or e is None or not e.numel():
                continue
            wanted = e.detach().double()
            seen = torch.maximum(self.largest.get((name, i), wanted.abs()), wanted.abs())
            self.largest[name, i] = seen
            unit = torch.finfo(self.dtype).eps * seen.clamp_min(LARGEST_LR)
            error = float(((a.detach().double() - wanted).abs() / unit).max())
            assert error <= ULPS[self.dtype], f"{name} {i}: {error:.1f} ulp"


def check_states(agreement, optimizer, params, other, twins):
    for p, t in zip(params, twins, strict=True):
        # a kernel makes its state before it knows of a skip
        assert int(entry(optimizer, p, "step", 0)) == int(entry(other, t, "step", 0))
    for name in ("slow_weights", "ema_weights"):
        actual = [entry(optimizer, p, name) for p in params]
        agreement.check(name, actual, [entry(other, t, name) for t in twins])


def entry(optimizer, param, name, default=None):
    return optimizer.state.get(param, {}).get(name, default)


def kernels_agree_with_the_oracle(case, backend):
    params = begin(case, torch.Generator().manual_seed(99))
    twins = [clones(group) for group in params]
    optimizer, oracle = build(case, params, backend), build(case, twins, "eager")
    scaler, twin_scaler = new_scaler(case), new_scaler(case)
    params, twins = flat(params), flat(twins)
    agreement = Agreement(case.dtype)
    for step in range(case.steps):
        advance(case, optimizer, scaler, params, step)
        advance(case, oracle, twin_scaler, twins, step)
        agreement.check("param", params, twins)
        check_states(agreement, optimizer, params, oracle, twins)
        if scaler:
            assert scaler.get_scale() == twin_scaler.get_scale()
        if optimizer.grad_norm is not None:
            torch.testing.assert_close(
                optimizer.grad_norm, oracle.grad_norm, rtol=1e-6, atol=0, equal_nan=True
            )


pytestmark = pytest.mark.random
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.cpu
@examples(150)
@given(case=cases([torch.float32, torch.float64, *HALF]))
def test_cpu_agrees_with_the_eager_oracle(case):
    kernels_agree_with_the_oracle(case, "cpu")


@pytest.mark.parametrize("backend", GPU_KERNELS)
@examples(40)
@given(case=cases([torch.float32, *HALF]))
def test_gpu_kernels_agree_with_the_eager_oracle(backend, case):
    kernels_agree_with_the_oracle(case, backend)


class Plain:
    """The whole tail in torch, written out: float32 inside, rounded once to the dtype."""

    def __init__(self, case, params):
        self.case, self.params = case, params
        self.wide = [
            [p.detach().to(compute(case.dtype)).requires_grad_() for p in group] for group in params
        ]
        own = [
            {k: v for k, v in g.options.items() if k in ("lr", "weight_decay")} for g in case.groups
        ]
        self.optimizer = CLASSES[case.kind][1](
            [{"params": w, **o} for w, o in zip(self.wide, own, strict=True)],
            foreach=False,
            **{"lr": 0.1, **torchs_options(case.kind, case.options, case.dtype)},
        )
        self.slow = [[w.detach().clone() for w in group] for group in self.wide]
        self.average = [[w.detach().clone() for w in group] for group in self.wide]
        self.counts = [[0] * len(group) for group in self.wide]

    @torch.no_grad()
    def step(self, grads, scale):
        wide = flat(self.wide)
        given = [g for g in grads if g is not None]
        if self.case.scaler and not all(g.isfinite().all() for g in given):
            return
        factor = 1 / scale
        if self.case.clip is not None and given:
            factor *= min(1.0, self.case.clip / (total_norm(given) * factor + 1e-6))
        for w, g in zip(wide, grads, strict=True):
            w.grad = None if g is None else g.to(w.dtype) * factor
        self.optimizer.step()
        for g, group in enumerate(self.case.groups):
            for i, w in enumerate(self.wide[g]):
                if w.grad is not None:
                    self.counts[g][i] += 1
                    self.follow(g, i, w, group.options)

    def follow(self, g, i, w, options):
        slow, average = self.slow[g][i], self.average[g][i]
        k, decay = options["lookahead_k"], options["ema_decay"]
        if k and self.counts[g][i] % k == 0:
            slow += options["lookahead_alpha"] * (w - slow)
            w.copy_(slow)
        if decay is not None:
            average.lerp_(w, 1 - decay)
        states = {k: v for k, v in self.optimizer.state[w].items() if k not in NUMBERS}
        for value in (w, slow, *filter(torch.is_tensor, states.values())):
            value.copy_(value.to(self.case.dtype))


def compute(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@examples(150)
@given(case=cases([torch.float32, torch.float64, *HALF]).filter(
    lambda c: not c.scaler or c.scaler[1] == "step"
))  # fmt: skip
def test_the_oracle_agrees_with_plain_torch(case):
    params = begin(case, torch.Generator().manual_seed(99))
    plain = Plain(case, [clones(group) for group in params])
    oracle, scaler = build(case, params, "eager"), new_scaler(case)
    params = flat(params)
    agreement = Agreement(case.dtype)
    for step in range(case.steps):
        scale = scaler.get_scale() if scaler else 1.0
        advance(case, oracle, scaler, params, step)
        plain.step(gradients(case, step, scale), scale)
        agreement.check("param", params, flat(plain.wide))
        for name, expected in (("slow_weights", plain.slow), ("ema_weights", plain.average)):
            agreement.check(name, [entry(oracle, p, name) for p in params], flat(expected))


def resume(case, optimizer, scaler, params, backend):
    """As after a crash: everything through a file, onto other parameters."""
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), scaler and scaler.state_dict(), params), file)
    file.seek(0)
    state, scaling, weights = torch.load(file, weights_only=True)
    groups, at = [], 0
    for group in case.groups:
        groups.append([w.detach().requires_grad_() for w in weights[at : at + len(group.shapes)]])
        at += len(group.shapes)
    resumed, twin_scaler = build(case, groups, backend), new_scaler(case)
    resumed.load_state_dict(state)
    if twin_scaler and scaling:
        twin_scaler.load_state_dict(scaling)
    return resumed, twin_scaler, flat(groups)


def resumes_bit_for_bit(case, backend, resumed_on):
    params = begin(case, torch.Generator().manual_seed(99))
    optimizer, scaler = build(case, params, backend), new_scaler(case)
    params = flat(params)
    for step in range(case.resumed_at):
        advance(case, optimizer, scaler, params, step)
    resumed, twin_scaler, twins = resume(case, optimizer, scaler, params, resumed_on)
    copied = copy.deepcopy(optimizer)
    copies = flat(group["params"] for group in copied.param_groups)
    copy_scaler = resume(case, optimizer, scaler, params, backend)[1]
    runs = [
        (optimizer, scaler, params),
        (resumed, twin_scaler, twins),
        (copied, copy_scaler, copies),
    ]
    for step in range(case.resumed_at, case.resumed_at + case.steps):
        for run in runs:
            advance(case, *run, step)
        for other, _, others in runs[1:]:
            assert_equal(params, others)
            for p, t in zip(params, others, strict=True):
                mine, theirs = optimizer.state.get(p, {}), other.state.get(t, {})
                assert mine.keys() == theirs.keys()
                assert_equal(mine.values(), theirs.values())


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@examples(80)
@given(case=cases([torch.float32, torch.float64, *HALF]))
def test_a_resume_from_any_state_goes_on_bit_for_bit(backend, case):
    resumes_bit_for_bit(case, backend, backend)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", GPU_KERNELS)
@examples(20)
@given(case=cases([torch.float32, *HALF]))
def test_a_resume_on_a_gpu_goes_on_as_cpu_bit_for_bit(backend, case):
    resumes_bit_for_bit(case, "cpu", backend)
