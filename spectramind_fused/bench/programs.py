"""What is timed: a step alone, with Lookahead, or with the whole tail around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spectramind_fused import GradScaler
from spectramind_fused.bench.contenders import (
    KAHAN,
    LOOP,
    OURS,
    WITHOUT_KERNELS,
    Contender,
    Unavailable,
    compiled_step,
    lookahead_of_pytorch_optimizer,
    ours,
)
from spectramind_fused.bench.traffic import (
    UNKNOWN,
    Traffic,
    counted,
    of_measuring,
    of_norm,
    of_update,
)
from spectramind_fused.optim import OPTIMIZERS, FusedStep

# How a step of ours may store parameters and moments of a dtype, by what tables say.
STORED: dict[torch.dtype, dict[str, dict[str, Any]]] = {
    torch.float32: {
        "": {},
        "bfloat16 moments": {"state_dtype": torch.bfloat16},
        "8-bit moments": {"state_dtype": "int8"},
    },
    torch.bfloat16: {
        "": {},
        "stochastic": {"stochastic_rounding": True},
        "float32 moments": {"state_dtype": torch.float32},
        "split": {"master_weights": "split"},
        "split, 8-bit moments": {"master_weights": "split", "state_dtype": "int8"},
        "stochastic, 8-bit moments": {"stochastic_rounding": True, "state_dtype": "int8"},
    },
    torch.float16: {
        "": {},
        "stochastic": {"stochastic_rounding": True},
        "master": {"master_weights": torch.float32},
    },
}
K, ALPHA, DECAY, MAX_NORM, SCALE = 5, 0.5, 0.999, 1.0, 1024.0
NEVER = 10**9  # as lookahead_k: no step syncs


class Step(NamedTuple):
    """A step that is ready to run.

    Attributes:
        name: as tables say it.
        contender: whose it is.
        run: the step.
        traffic: bytes per step.
        capturable: it can be recorded in a CUDA graph.
        before: runs before each call, untimed.
    """

    name: str
    contender: Contender
    run: Callable[[], Any]
    traffic: Traffic
    capturable: bool
    before: Callable[[], Any] | None = None


class Program(NamedTuple):
    """Something to time.

    Attributes:
        title: as tables say it.
        cycle: steps of which a mean is one sample, since one in so many syncs.
        gradients: before each step they are "kept"; "given" anew in their place, as the step
            changes them; or come from a "backward" pass, each in a new tensor.
        steps: of the contenders given beside ours, those who can run it, built; and those who
            cannot, with the reason.
    """

    title: str
    cycle: int
    gradients: Literal["kept", "given", "backward"]
    steps: Callable[[str, list[Tensor], Sequence[Contender]], Iterator[Step | tuple[str, str]]]


def our_backends(
    kind: str, params: list[Tensor], **extras: Any
) -> Iterator[tuple[str, FusedStep | str]]:
    """Ours, and on a GPU the CUDA C++ kernels too; or why these do not run."""
    yield OURS.name, ours(kind, params, **extras)
    if params[0].is_cuda:
        name = f"{OURS.name}, cuda"
        try:
            yield name, ours(kind, params, backend="cuda", **extras)
        except ValueError as reason:
            yield name, str(reason)


def step_of_ours(
    name: str,
    optimizer: FusedStep,
    run: Callable[[], Any],
    one_pass: Traffic,
    times: int = 1,
    capturable: bool = True,
) -> Step:
    """Bytes by the formula of the kernels; counted, where torch's own code takes the step."""
    pairs = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    torchs = any(optimizer.why_eager(group, p) for group, p in pairs)
    traffic = _counted(run, times) if torchs else one_pass
    return Step(name, OURS, run, traffic, capturable)


def _updates(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[Step | tuple[str, str]]:
    """The plain step of everyone."""
    one_pass = _one_pass(kind, params)
    for name, own in our_backends(kind, params):
        yield (name, own) if isinstance(own, str) else step_of_ours(name, own, own.step, one_pass)
    own = ours(kind, params, backend="torch")
    yield step_of_ours(WITHOUT_KERNELS, own, own.step, one_pass)
    del own  # with its states: who takes the steps one by one has memory for one
    for peer, optimizer in _peers(kind, params, peers):
        if isinstance(optimizer, str):
            yield peer.name, optimizer
            continue
        run = compiled_step(optimizer) if peer.compiled else optimizer.step
        traffic = _of_step(kind, peer, params, one_pass)
        yield Step(peer.name, peer, run, traffic, peer.capturable)


def _of_step(kind: str, peer: Contender, params: list[Tensor], one_pass: Traffic) -> Traffic:
    """Bytes of a plain step, counted where its operators show them."""
    if peer.unknown_bytes or peer.one_pass:
        return UNKNOWN if peer.unknown_bytes else one_pass
    few = _few(params)
    return _counted(peer.build(kind, few).step).times(_elements(params) / _elements(few))


def _few(params: list[Tensor]) -> list[Tensor]:
    """A small stand-in, for bytes count per parameter and the whole may have no room twice."""
    few = params[0].detach().new_ones(1 << 16).requires_grad_()
    few.grad = torch.full_like(few, 1e-3)
    return [few]


def _peers(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[tuple[Contender, Optimizer | str]]:
    """The others, with their optimizer or why they have none."""
    for peer in peers:
        built: Optimizer | str
        try:
            _must_move(peer, kind, params[0])
            built = peer.build(kind, params)
        except Unavailable as reason:
            built = str(reason)
        yield peer, built


def _must_move(peer: Contender, kind: str, like: Tensor) -> None:
    """Torch 2.13's fused SGD leaves 16-bit parameters on CPUs where they were, for one.

    Raises:
        Unavailable: the step of this contender moves nothing, or torch refuses it.
    """
    one = like.detach().new_zeros(64).requires_grad_()
    one.grad = torch.ones_like(one)
    try:
        peer.build(kind, [one]).step()
    except RuntimeError as error:  # torch has its fused Adagrad on CPUs alone
        raise Unavailable(f"{peer.name}: {error}") from error
    if not one.any():
        raise Unavailable(f"its step leaves {like.dtype} parameters where they were")


def _lookaheads(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[Step | tuple[str, str]]:
    """A step with Lookahead: ours between syncs and over a whole cycle, beside torch's fused."""
    one_pass, syncs = _one_pass(kind, params), _one_pass(kind, params, syncs=1 / K)
    off = ours(kind, params)
    between = ours(kind, params, lookahead_k=NEVER)
    whole = ours(kind, params, lookahead_k=K, lookahead_alpha=ALPHA)
    yield step_of_ours(f"{OURS.name}, off", off, off.step, one_pass)
    yield step_of_ours(f"{OURS.name}, between syncs", between, between.step, one_pass)
    yield step_of_ours(f"{OURS.name}, k = {K}", whole, whole.step, syncs, K)
    fastest = next(peer for peer in peers if peer.name == "torch, fused")
    name = f"pytorch_optimizer's over {fastest.name}, k = {K}"
    try:
        wrapped = lookahead_of_pytorch_optimizer(fastest.build(kind, params), K, ALPHA)
    except Unavailable as reason:
        yield name, str(reason)
    else:
        yield Step(name, fastest, wrapped.step, _counted(wrapped.step, K), False)


def _tails(
    kind: str, params: list[Tensor], peers: Sequence[Contender], amp: bool
) -> Iterator[Step | tuple[str, str]]:
    """Everything after the backward pass; of the others in passes, each in its fastest form."""
    size, device = params[0].element_size(), params[0].device.type
    extras = {"lookahead_k": K, "lookahead_alpha": ALPHA, "ema_decay": DECAY}
    update = _one_pass(kind, params, syncs=1 / K, ema=True, zero_grads=amp)
    factored = bool(OPTIMIZERS[kind].cls.algorithm.vectors)  # the norm is of the same read then
    traffic = update if factored else update.plus(of_norm(size).times(_elements(params)))
    whole = {"clip_grad_norm": MAX_NORM, "zero_grads": amp, **extras}
    for name, own in our_backends(kind, params, **whole):
        if isinstance(own, str):
            yield name, own
        else:
            yield step_of_ours(name, own, _scaled(own, device, amp), traffic, K, not amp)
    for peer, optimizer in _peers(kind, params, peers):
        if peer.name == LOOP:
            continue  # its passes are foreach's
        if isinstance(optimizer, str):
            yield peer.name, optimizer
            continue
        run = torchs_passes(optimizer, params, amp, peer.compiled)
        yield Step(peer.name, peer, run, _of_passes(kind, peer, params, amp), False)


def _scaled(optimizer: Optimizer, device: str, amp: bool) -> Callable[[], Any]:
    if not amp:
        return optimizer.step
    scaler = GradScaler(device, init_scale=SCALE)
    scaler.scale(torch.ones((), device=device))

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return step


def torchs_passes(
    optimizer: Optimizer, params: list[Tensor], amp: bool, compiled: bool = False
) -> Callable[[], Any]:
    """What a careful user of torch writes around an optimizer, each pass in its fastest form."""
    device = params[0].device.type
    if compiled:
        optimizer.step = compiled_step(optimizer)  # type: ignore[assignment, method-assign]
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, enabled=amp)
    scaler.scale(torch.ones((), device=device))
    model = torch.nn.ParameterList(params)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]
    average.update_parameters(model)  # the first only copies
    fast = [p.detach() for p in params]
    slow = [p.clone() for p in fast]
    due = cycle([False] * (K - 1) + [True])

    def step() -> None:
        if amp:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        scaler.step(optimizer)
        scaler.update()
        if next(due):
            torch._foreach_lerp_(slow, fast, ALPHA)
            torch._foreach_copy_(fast, slow)
        average.update_parameters(model)
        if amp:
            optimizer.zero_grad(set_to_none=False)

    return step


def _of_passes(kind: str, peer: Contender, params: list[Tensor], amp: bool) -> Traffic:
    """Bytes of `torchs_passes`, counted likewise."""
    if peer.unknown_bytes:
        return UNKNOWN
    few = _few(params)
    if peer.one_pass:  # the counter does not see what its update moves
        around = counted(torchs_passes(_Nothing(few), few, amp), K)
        traffic = around.plus(_one_pass(kind, few))
    else:
        traffic = _counted(torchs_passes(peer.build(kind, few), few, amp), K)
    return traffic.times(_elements(params) / _elements(few))


class _Nothing(torch.optim.SGD):
    """An optimizer whose step does nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def _one_pass(kind: str, params: list[Tensor], **epilogues: Any) -> Traffic:
    info, size = OPTIMIZERS[kind], params[0].element_size()
    if info.of_matrices:  # its products move what torch's libraries choose
        return UNKNOWN
    per_parameter = of_update(info.usual_states, size, **epilogues)
    if info.cls.algorithm.measured:
        per_parameter = per_parameter.plus(of_measuring(size))
    return per_parameter.times(_elements(params))


def _storages(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[Step | tuple[str, str]]:
    """Ours in every way to store a model of this dtype, beside the fastest that torch has."""
    for stored, options in STORED[params[0].dtype].items():
        try:
            made = list(our_backends(kind, params, **options))
        except ValueError as reason:  # rules whose states have to be float32
            made = [(OURS.name, str(reason))]
        for name, own in made:
            label = f"{name}, {stored}".removesuffix(", ")
            if isinstance(own, str):
                yield label, own
                continue
            own.step()  # makes the states
            yield step_of_ours(label, own, own.step, _of_held(own))
    among = [peer for peer in peers if peer.name == "torch, fused"]
    for peer, optimizer in _peers(kind, params, [*among, KAHAN]):
        if isinstance(optimizer, str):
            yield peer.name, optimizer
        else:
            optimizer.step()
            yield Step(peer.name, peer, optimizer.step, _of_held(optimizer), peer.capturable)


def _of_held(optimizer: Optimizer) -> Traffic:
    """Bytes of one pass over what an optimizer holds: all in and out, but gradients, in."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [t for p in params for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    held = sum(t.nbytes for t in (*params, *states))
    return Traffic(held + sum(p.grad.nbytes for p in params), held)


def _elements(params: list[Tensor]) -> int:
    return sum(map(torch.numel, params))


def _counted(run: Callable[[], Any], times: int = 1) -> Traffic:
    run()  # the first makes states
    return counted(run, times)


def _uncompiled(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[Step | tuple[str, str]]:
    """The plain step of everyone whom torch does not compile for minutes first."""
    return _updates(kind, params, [peer for peer in peers if not peer.compiled])


def _participants(
    kind: str, params: list[Tensor], peers: Sequence[Contender]
) -> Iterator[Step | tuple[str, str]]:
    """Ours, where the same parameters have a gradient at every step, and where others have."""
    one_pass = _one_pass(kind, params)
    grads = [p.grad for p in params]

    def give(absent: int) -> None:
        """To all but one in eight of them."""
        for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
            p.grad = None if i % 8 == absent else grad

    turns = cycle(range(8))
    for name, before in (
        ("the same", partial(give, 0)),
        ("others at every step", lambda: give(next(turns))),
    ):
        own = ours(kind, params)
        yield Step(f"{OURS.name}, {name}", OURS, own.step, one_pass.times(7 / 8), False, before)


PROGRAMS = {
    "step": Program("update", 1, "kept", _updates),
    "backward": Program("update after a backward pass", 1, "backward", _uncompiled),
    "storages": Program("update, stored in different ways", 1, "kept", _storages),
    "participants": Program("update of seven in eight", 1, "kept", _participants),
    "lookahead": Program("update, Lookahead", K, "kept", _lookaheads),
    "tail": Program("clip, update, Lookahead, EMA", K, "given", partial(_tails, amp=False)),
    "amp_tail": Program(
        "unscale, clip, update, Lookahead, EMA, zero", K, "given", partial(_tails, amp=True)
    ),
}
