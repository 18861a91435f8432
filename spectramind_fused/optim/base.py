"""The one step() that all optimizers share."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import Scaling
from spectramind_fused.optim.checkpoint import (
    check_loadable,
    check_seed,
    in_full_precision,
    keep_live_options,
    unshare_state,
)
from spectramind_fused.optim.conversion import converted, of_this_version, use_own_names
from spectramind_fused.optim.ema import averaged
from spectramind_fused.stepping import ending, forks
from spectramind_fused.stepping.agreement import refuse
from spectramind_fused.stepping.algorithm import Algorithm
from spectramind_fused.stepping.backends import Backends
from spectramind_fused.stepping.captures import Captures
from spectramind_fused.stepping.fallback import Fallback
from spectramind_fused.stepping.groups import GroupsSeen
from spectramind_fused.stepping.inputs import Participants, StepInputs, scaling_of
from spectramind_fused.stepping.options import ALONE, EMA_DECAY, Options
from spectramind_fused.stepping.plan import Plan, PlanDescription
from spectramind_fused.stepping.refusals import check_moments, check_storage
from spectramind_fused.stepping.state import extras
from spectramind_fused.stepping.storage import bytes_of
from spectramind_fused.stepping.vectors import bytes_of_vectors


class FusedStep(torch.optim.Optimizer):
    """Gives a torch.optim class a fused step and what follows it; the rest stays torch's own.

    Constructor, validation, parameter groups, hooks, schedulers and checkpoints are those of
    the torch class that follows in the method resolution order.

    Args:
        *args: what the torch class takes.
        lookahead_k: Lookahead period (Zhang et al., Lookahead Optimizer, 2019), in this
            parameter's own steps; 0 disables it. Per group.
        lookahead_alpha: how far the slow weights move towards the parameters at the end of a
            period, in [0, 1]. Per group.
        state_dtype: what the moments are kept in: "float32", "bfloat16" or "int8" (8 bits in
            groups of 32 that share a scale), or a `torch.dtype`; None keeps them as torch does, in
            the parameter's dtype (float32 beside `master_weights`). Fewer bits are rounded
            stochastically. Per group.
        low_precision_min_size: a parameter of fewer elements keeps its moments and averages in
            float32, whatever `state_dtype` and `ema_dtype` say. Per group.
        master_weights: keeps 16-bit parameters in float32 beside what the model sees: "split"
            keeps the 16 bits that a bfloat16 lacks, "float32" a whole copy; None keeps nothing. A
            parameter that something else has written to counts as it is then. Per group.
        stochastic_rounding: rounds 16-bit parameters, and states, slow and averaged weights of 16
            bits, up or down at random, so that the mean is exact: small steps are not lost. The
            random bits depend on the seed, the step, the parameter and the element alone. Per
            group.
        seed: of the random bits, a whole number.
        ema_dtype: what averaged and slow weights are kept in, "float32" or "bfloat16"; None:
            averages in float32 at least, slow weights as the parameter. Per group.
        ema_decay: keeps an exponential moving average of the parameters:
            `ema = ema_decay * ema + (1 - ema_decay) * p` after each of their steps, beginning as
            the parameters; in [0, 1], None disables it. Per group.
        clip_grad_norm: the largest total norm of all gradients; larger ones are scaled down
            to it, as by `torch.nn.utils.clip_grad_norm_` before the step. `inf` only measures
            (`grad_norm`), None is off.
        norm_group: the ranks that step the other parameters of the model, as under
            `ZeroRedundancyOptimizer` or with pipeline stages: "world", or a process group of
            `torch.distributed`. The total norm is that over all of them, and each must step when
            the others do. None: this optimizer holds all. (All parts of a DTensor count anyhow.)
        zero_grads: leaves zeros in the gradients, as `zero_grad(set_to_none=False)` after the
            step, for those who must keep them allocated.
        backend: "auto" takes the fastest that runs on each device; "triton", "cuda", "cpu",
            "torch" (torch's own step, in its fastest form) or "eager" (torch's own step, in plain
            arithmetic: the reference) is taken as named.
        **kwargs: what the torch class takes. `foreach=True` and `differentiable=True` mean
            torch's own step; `fused=True` means these kernels, as does leaving it out.

    Raises:
        ValueError: an argument torch refuses; one of ours out of range, or combined with
            `differentiable=True`; an unknown backend, or a named one that cannot run.
    """

    algorithm: ClassVar[Algorithm] = Algorithm()
    # What a pickle of a torch class, or of an older version, lacks.
    _backend = "auto"
    zero_grads = False
    _clip_grad_norm: float | None = None
    _norm_group: Any = None
    _options = Options()  # as constructed, for the first group to put into the defaults
    _counters: dict[Tensor, Tensor]  # step counters that torch's state has not
    _plan: Plan | None
    _backends: Backends
    _fallback: Fallback
    _captures: Captures
    _groups_seen: GroupsSeen | None  # by the last step, if it was taken
    _grad_norm: Tensor | None
    _scaling: Scaling  # what a scaler asked of the last step
    _nonfinite_per_device: dict[torch.device, Any]
    _checks_for_inf: bool  # set by our GradScaler for the next step
    _averaged: bool  # the parameters hold the averages for now

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __init__(
        self,
        *args: Any,
        lookahead_k: int = 0,
        lookahead_alpha: float = 0.5,
        ema_decay: float | None = None,
        ema_dtype: str | torch.dtype | None = None,
        state_dtype: str | torch.dtype | None = None,
        low_precision_min_size: int = 4096,
        master_weights: str | torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        clip_grad_norm: float | None = None,
        norm_group: Any = None,
        zero_grads: bool = False,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        self._backend = backend
        self.zero_grads = zero_grads
        self.clip_grad_norm = clip_grad_norm
        self.norm_group = norm_group
        self._options = Options(
            lookahead_k,
            lookahead_alpha,
            ema_decay,
            ema_dtype,
            state_dtype,
            low_precision_min_size,
            master_weights,
            stochastic_rounding,
            seed,
        )
        self._options.check()
        self._counters = {}
        self._begin()
        super().__init__(*args, **kwargs)
        self._accept_scaler()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        torch_class = cls.__mro__[cls.__mro__.index(FusedStep) + 1]
        cls.algorithm = replace(cls.algorithm, cls=cls, torch_class=torch_class)
        # One signature for readers and for checks: torch's, then ours.
        theirs = inspect.signature(torch_class)
        ours = [
            p
            for p in inspect.signature(FusedStep.__init__).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *ours])  # type: ignore[attr-defined]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; `lookahead_k`, `lookahead_alpha`, `ema_decay` may differ.

        Raises:
            ValueError: one of them is out of range.
        """
        self.defaults |= {**self._options.entries({}), **self.defaults}
        if isinstance(param_group, dict):
            known = {*param_group, *self.defaults}
            alone = {name for name, key in ALONE.items() if not {name, key} & known}
            # What the constructor was given, for a group that switches on what needs it.
            given = {name: getattr(self._options, name) for name in alone}
            param_group.update(given)
            try:
                self._check({**self.defaults, **use_own_names(param_group, self.defaults)})
            finally:
                for name in given:
                    param_group.pop(name, None)
        super().add_param_group(param_group)
        try:
            check_storage(self.param_groups[-1])
        except ValueError:
            del self.param_groups[-1]
            raise
        for param in self.param_groups[-1]["params"]:
            self._backends.on(param.device)  # a named backend that cannot run is refused here

    @torch.no_grad()
    def _fused_step(self) -> None:
        seen, self._groups_seen = self._groups_seen, None
        sums = self.clip_grad_norm is not None or self._checks_for_inf
        try:
            inputs, seen = self._looked_at(seen)
            plan = self._planned(inputs)
        except Exception:
            if sums:  # or the ranks that share the norm wait for this one
                refuse(self.param_groups, self.norm_group)
            raise
        if plan is None:
            step = partial(inspect.unwrap(self.algorithm.torch_class.step), self)
            self._fallback.run(step, self.param_groups)
            return
        self._plan = None  # what a rank that was refused has begun is gone
        result = plan.run(inputs)
        self._plan = plan
        if result.norm is not None:
            self._grad_norm = result.norm
            self._nonfinite_per_device |= result.nonfinite
        self._groups_seen = seen

    def _looked_at(self, seen: GroupsSeen | None) -> tuple[StepInputs, GroupsSeen]:
        """What this step brings, its options checked where they are not those of the last one."""
        settled = seen is not None and seen.same(self.param_groups, self.clip_grad_norm)
        if seen is None or not settled:
            self._check_changed_options()
            seen = GroupsSeen(self.param_groups, self.clip_grad_norm)
        inputs = self._inputs(settled)
        self._scaling = inputs.scaling
        return inputs, seen

    def _planned(self, inputs: StepInputs) -> Plan | None:
        """The plan that takes this step, ready for its launches; None where torch's step does."""
        plan, self._plan = self._plan, None
        if not (plan and plan.has_kernels) and self._fallback.serves(inputs):
            return None
        look = plan.look(inputs) if plan else None
        if plan is None or look is None:
            participants = Participants.of(self.param_groups)
            plan = Plan(self.algorithm, self._backends, inputs, participants, before=plan)
        self._plan = plan  # also of a step that is refused
        plan.prepare(inputs, look, self._captures)
        return plan

    def _inputs(self, settled: bool) -> StepInputs:
        """What this step brings. A scaler's wish to look for inf holds for one step."""
        skip_nonfinite, self._checks_for_inf = self._checks_for_inf, False
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaling = scaling_of(grad_scale, found_inf, skip_nonfinite)
        return StepInputs(
            groups=self.param_groups,
            state=self.state,
            counters=self._counters,
            attributes=vars(self),
            max_norm=self.clip_grad_norm,
            norm_group=self.norm_group,
            zero_grads=self.zero_grads,
            scaling=scaling,
            settled=settled,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step: two kernel launches, three where the norm of the gradients is needed.

        That many per bucket: parameters of one device, with the same dtypes. One more takes the
        norm of more than 33 million parameters on a GPU.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: a gradient is sparse and the torch class takes none, or does not fit its
                parameter; a parameter is expanded; a tensor has no memory; the parameters hold
                their averages; another thread is in this step.
            ValueError: a state does not fit its parameter; a step counter counts no steps; an
                option of a group is out of range. Nothing has moved then, but where no kernel runs
                and torch's own step, taken as it is, raises.
        """
        if self._averaged:
            raise RuntimeError("step() inside `with optimizer.ema_weights():`: leave it first.")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    @torch._disable_dynamo  # type: ignore[attr-defined]  # there is nothing in it to compile
    def _take_step(self) -> None:
        taken = self._in_step.acquire(blocking=False)
        if not taken and not ending.may_step():
            raise RuntimeError(
                "step() is running in another thread: call it from one thread at a time."
            )
        try:
            forks.settle()
            self._fused_step()
        finally:
            if taken:
                self._in_step.release()

    @property
    def backend(self) -> str:
        """What was asked for, as in the constructor; may be assigned between steps."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        backends = Backends(value, self.algorithm)
        for group in getattr(self, "param_groups", ()):
            for param in group["params"]:
                backends.on(param.device)  # or it raises, and nothing has changed
        self._backend, self._backends, self._plan = value, backends, None
        self._fallback = Fallback(self.algorithm, backends)

    @property
    def clip_grad_norm(self) -> float | None:
        """The largest total norm of the gradients; may be assigned between steps."""
        return self._clip_grad_norm

    @clip_grad_norm.setter
    def clip_grad_norm(self, value: float | None) -> None:
        if value is not None and not value > 0:
            raise ValueError(
                f"Invalid clip_grad_norm {value!r}: give a number above 0, or None for no clipping."
            )
        self._clip_grad_norm = value

    @property
    def norm_group(self) -> Any:
        """The ranks that step the other parameters: "world", a process group or None.

        May be assigned between steps. A process group is not kept by a copy or a pickle.
        """
        return self._norm_group

    @norm_group.setter
    def norm_group(self, value: Any) -> None:
        if isinstance(value, str) and value != "world":
            raise ValueError(
                f"Invalid norm_group {value!r}: give a process group, 'world' or None."
            )
        self._norm_group = value
        self._plan = None  # its sums hold what the other ranks said

    @property
    def grad_norm(self) -> Tensor | None:
        """Total norm of the last step's gradients, unscaled and before clipping.

        A float32 0-dim tensor on the device, read without a synchronisation; later steps do
        not change it. None before the first step, and where no step needed the norm: it is
        taken for `clip_grad_norm` and for the inf check of our `GradScaler`.
        """
        return None if self._grad_norm is None else self._grad_norm.detach().float().clone()

    @property
    def skipped(self) -> Tensor | None:
        """Whether the last step changed nothing, for a gradient that is not finite.

        A bool 0-dim tensor on the device, read without a synchronisation; later steps do not
        change it. None before the first step, and where no GradScaler took it: only they skip.
        """
        scaling = self._scaling
        if scaling.skip_nonfinite:
            found = next(iter(self._nonfinite_per_device.values()), None)
        else:
            found = scaling.found_inf
        return None if found is None else found.detach().reshape(()) != 0

    def ema_weights(self) -> AbstractContextManager[None]:
        """Puts the averaged weights into the parameters: `with optimizer.ema_weights(): ...`.

        At the end the trained weights are back, whatever happened inside. Parameters that have
        taken no step keep their values. Buffers, such as a batch norm's, are left alone.

        Raises:
            RuntimeError: no group has an `ema_decay`, or the averages are in place already.
        """
        if all(group.get(EMA_DECAY) is None for group in self.param_groups):
            raise RuntimeError("No averaged weights are kept: give ema_decay, such as 0.999.")
        if self._averaged:
            raise RuntimeError("The averaged weights are in place already.")
        return self._averages_in_place()

    @contextmanager
    def _averages_in_place(self) -> Iterator[None]:
        with averaged(self.param_groups, self.state):
            self._averaged = True
            try:
                yield
            finally:
                self._averaged = False

    def refresh_hyperparameters(self) -> None:
        """Uploads changed hyperparameters now, instead of at the next step.

        For replayed CUDA graphs: `step()` is not called again, so call this after a scheduler
        or an assignment changed a number. The upload runs on the current stream: call this on the
        stream that replays, or let that one wait. A tensor that is on the device (`lr` with
        `capturable=True`) is read by every replay and needs no call.
        """
        self._groups_seen = None
        plans = self._captures.plans()
        if self._plan is not None and self._plan not in plans:
            plans.append(self._plan)
        for plan in plans:
            plan.refresh_hyperparameters(self.param_groups, self.clip_grad_norm)

    def backends(self) -> dict[str, str]:
        """Which backend serves the parameters of each device, and why not a faster one.

        Returns:
            For each device one line: the backend, the reason where it is eager, and the
            number of parameters that torch's own step serves all the same.
        """
        return self._backends.describe(self.param_groups)

    def why_eager(self, group: dict[str, Any], param: Tensor) -> str:
        """Why torch's own step serves this parameter; empty where a kernel does.

        Raises:
            ValueError: a backend was named and cannot serve the parameter.
        """
        return self._backends.why_eager(group, param)

    def bytes_per_parameter(self, group: dict[str, Any]) -> dict[str, float]:
        """What a group's parameters, gradients and states take in memory, for each parameter.

        Args:
            group: one of `param_groups`. Its parameters need no state yet.

        Returns:
            Bytes of "param" (with what is kept beside it), "grad", and each state by its name;
            empty where the group has no parameters.
        """
        total: Counter[str] = Counter()
        for param in group["params"]:
            algorithm = self.algorithm.of(param, group)
            slots = (*algorithm.states_of(group), *extras(group))
            total.update(bytes_of(algorithm, group, param, slots))
            total.update(bytes_of_vectors(algorithm, group, param))
            total["grad"] += param.numel() * param.element_size()
        count = sum(param.numel() for param in group["params"])
        return {name: size / count for name, size in total.items() if count}

    def describe_plan(self) -> PlanDescription | None:
        """How the last step was taken: its buckets, and the parameters that torch stepped.

        Returns:
            None before the first step, and after a change of options that drops the plan.
        """
        if self._fallback.served:
            return PlanDescription([], self._fallback.served)
        return None if self._plan is None else self._plan.describe()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this class or of the torch class it replaces.

        Live `foreach` and `fused` flags stay, and so do Lookahead and averages that the checkpoint
        lacks. One of timm's Lookahead is taken where ours is on and would go on alike. The loaded
        tensors are copied, never shared.

        Raises:
            ValueError: the checkpoint is of another optimizer or of other parameters, or holds
                an option or a step counter that cannot be; nothing is changed then.
        """
        state_dict = converted(self.algorithm, self.param_groups, state_dict)
        check_loadable(self.algorithm, self.defaults, self.param_groups, state_dict)
        check_seed(self.param_groups, state_dict["param_groups"])
        own = self.algorithm.beyond_torch
        for group in state_dict["param_groups"]:
            self._check(group)
        for group, live_group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            kept = {name: live_group[name] for name in own if name in live_group}
            self._check_own({**kept, **group, "params": live_group["params"]})
        live = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        keep_live_options(self.param_groups, state_dict["param_groups"], live, own)
        unshare_state(self.algorithm, self.param_groups, self.state, state_dict)

    def full_precision_state_dict(self) -> dict[str, Any]:
        """As `state_dict()`, with every state, average and master weight in float32.

        So it loads into `torch.optim`, into this class with other storage options, and after a
        change of what the parameters are split over.

        Raises:
            RuntimeError: the parameters hold their averages.
        """
        if self._averaged:
            raise RuntimeError(
                "full_precision_state_dict() inside `with optimizer.ema_weights():`: leave it "
                "first."
            )
        state_dict = self.state_dict()
        return in_full_precision(self.algorithm, self.param_groups, self.state, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("_backend", "zero_grads", "_clip_grad_norm")}
        group = self._norm_group if isinstance(self._norm_group, str) else None
        kept |= {"_norm_group": group, "_counters": self._counters}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a torch class, of version 0.1, and, from a load, of states and groups alone."""
        self._counters = {}
        super().__setstate__(of_this_version(state))
        self._begin()
        self._accept_scaler()

    def _begin(self) -> None:
        """Everything that is built anew after construction, a copy, a pickle or a load."""
        self._plan = None
        if not hasattr(self, "_captures"):  # after a load graphs replay what they replayed before
            self._captures = Captures()
        self._backends = Backends(self._backend, self.algorithm)
        self._fallback = Fallback(self.algorithm, self._backends)
        self._grad_norm = None
        self._scaling = Scaling()
        self._nonfinite_per_device = {}
        self._checks_for_inf = self._averaged = False
        self._checked_options: list[Any] = []
        self._groups_seen = None
        self._in_step = threading.Lock()
        ending.watch(self)
        # As torch's constructor has it. Without it torch's copies of an Adafactor raise on a GPU.
        self._warned_capturable_if_run_uncaptured = True

    def _accept_scaler(self) -> None:
        # GradScaler then leaves unscaling and skipping to the step.
        self._step_supports_amp_scaling = not self.defaults.get("differentiable", False)

    def _check_changed_options(self) -> None:
        """Ours may be assigned between steps, as torch's, and are looked at when they were."""
        options = [
            [*map(_comparable, Options.of(group)), *self.algorithm.sorting_of(group)]
            for group in self.param_groups
        ]
        if options != self._checked_options:
            for group in self.param_groups:
                self._check(group)
                check_storage(group)
                self._check_own(group)
            self._checked_options = options

    def _check_own(self, group: dict[str, Any]) -> None:
        """What a class has to say of a group's options, before a step."""

    def _check(self, group: dict[str, Any]) -> None:
        options = Options.of(group)
        options.check()
        check_moments(self.algorithm, group)
        ours: dict[str, Any] = {
            "lookahead_k": options.lookahead_k,
            "ema_decay": options.ema_decay is not None,
            "state_dtype": options.state_dtype is not None,
            "master_weights": options.master_weights is not None,
            "stochastic_rounding": options.stochastic_rounding,
        }
        ours |= {"clip_grad_norm": self.clip_grad_norm, "zero_grads": self.zero_grads}
        for name, on in ours.items():
            if on and group.get("differentiable"):
                raise ValueError(f"{name} cannot be combined with differentiable=True.")


def _comparable(value: Any) -> Any:
    """A number that may be compared later: a tensor on the CPU may change in its place."""
    return float(value) if isinstance(value, Tensor) and value.device.type == "cpu" else value
