"""The one step() that all optimizers share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectramind_fused.optim.checkpoint import check_loadable, keep_live_options, own_state
from spectramind_fused.optim.eager import eager_step
from spectramind_fused.optim.plan import Choice, Plan, choose, eager_by_need, eager_by_option

_OURS = ("lookahead_k", "lookahead_alpha")


class FusedStep(torch.optim.Optimizer):
    """Gives a torch.optim class a fused step and Lookahead; the rest stays torch's own.

    Constructor, validation, parameter groups, hooks, schedulers and checkpoints are those of
    the torch class that follows in the method resolution order.

    Args:
        *args: what the torch class takes.
        lookahead_k: every how many of its own steps a parameter goes back to its slow
            weights (Zhang et al., Lookahead Optimizer, 2019); 0 is off. Per group.
        lookahead_alpha: which part of the way the slow weights go, in [0, 1]. Per group.
        backend: "auto" takes the fastest that runs on each device; "triton", "cpu" or
            "eager" (plain torch) is taken as named.
        **kwargs: what the torch class takes. `foreach=True` and `differentiable=True` mean
            torch's own step; `fused=True` means these kernels, as does leaving it out.

    Raises:
        ValueError: an argument torch refuses; a Lookahead value out of range; an unknown
            backend, or a named one that cannot run.
    """

    rule: ClassVar[str]  # as the kernels know it
    state_names: ClassVar[tuple[str, ...]]  # all that the rule may hold
    sparse_hint: ClassVar[str] = ""  # set where torch's class takes no sparse gradients
    torch_counts_steps: ClassVar[bool] = True
    _torch_class: ClassVar[type[torch.optim.Optimizer]]
    _plan: Plan | None
    _choices: dict[torch.device, Choice]

    def __init__(
        self,
        *args: Any,
        lookahead_k: int = 0,
        lookahead_alpha: float = 0.5,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        self.backend = backend
        self._ours = {"lookahead_k": lookahead_k, "lookahead_alpha": lookahead_alpha}
        self._forget_plan()
        super().__init__(*args, **kwargs)
        # Until the kernels unscale, GradScaler must do it: torch sets this for fused=True.
        self._step_supports_amp_scaling = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mro = cls.__mro__
        cls._torch_class = mro[mro.index(FusedStep) + 1]
        # One signature for readers and for checks: torch's, then ours.
        theirs = inspect.signature(cls._torch_class)
        ours = [
            p
            for p in inspect.signature(FusedStep.__init__).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *ours])  # type: ignore[attr-defined]

    @classmethod
    def _states(cls, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the states the rule holds with this group's options."""
        raise NotImplementedError

    @staticmethod
    def _hyperparameters(group: dict[str, Any]) -> tuple[Any, ...]:
        """The rule's row of the hyperparameter table, in the order the kernels read it."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; `lookahead_k` and `lookahead_alpha` may differ per group.

        Raises:
            ValueError: a Lookahead value is out of range.
        """
        self.defaults |= {k: v for k, v in self._ours.items() if k not in self.defaults}
        if isinstance(param_group, dict):
            _check_lookahead({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            self._choice(param.device)  # a named backend that cannot run is refused here

    @torch.no_grad()
    def _fused_step(self) -> None:
        params, grads = [], []
        for group in self.param_groups:
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    params.append(param)
                    grads.append(grad)
        plan = self._plan
        if plan is None or not plan.fits(self, params, grads):
            self._refuse_sparse(grads)
            plan = Plan(self, params, grads)
            self._plan = plan if plan.lasting else None
        if plan.eager:
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                eager_step(self, plan.eager)
        plan.run(self, grads)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step: two kernel launches per bucket of parameters.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: a gradient is sparse and the torch class takes none.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._fused_step()
        return loss

    def backends(self) -> dict[str, str]:
        """Which backend serves the parameters of each device, and why not a faster one.

        Returns:
            For each device one line: the backend, the reason where it is eager, and the
            number of parameters that torch's own step serves all the same.
        """
        lines = {}
        for device in dict.fromkeys(p.device for g in self.param_groups for p in g["params"]):
            backend, reason = self._choice(device)
            line = f"{backend.name if backend else 'eager'}{f' ({reason})' if reason else ''}"
            whys = [
                self.why_eager(group, p)
                for group in self.param_groups
                for p in group["params"]
                if p.device == device
            ]
            if backend is not None and any(whys):
                reasons = "; ".join(dict.fromkeys(filter(None, whys)))
                line += f", eager for {sum(map(bool, whys))} of {len(whys)} parameters ({reasons})"
            lines[str(device)] = line
        return lines

    def why_eager(self, group: dict[str, Any], param: Tensor) -> str:
        """Why torch's own step serves this parameter; empty where a kernel does.

        Raises:
            ValueError: a backend was named and cannot serve the parameter.
        """
        backend, reason = self._choice(param.device)
        reason = eager_by_option(group, param) or reason
        if reason or backend is None:
            return reason or "no kernel backend"
        reason = eager_by_need(backend, param)
        if reason and self.backend != "auto":
            raise ValueError(
                f"backend={self.backend!r} cannot serve a parameter of shape "
                f"{tuple(param.shape)}: {reason}. backend='auto' steps it eagerly."
            )
        return reason

    def _choice(self, device: torch.device) -> Choice:
        if device not in self._choices:
            self._choices[device] = choose(self.backend, device)
        return self._choices[device]

    def _refuse_sparse(self, grads: list[Tensor]) -> None:
        if self.sparse_hint and any(grad.is_sparse for grad in grads):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients; {self.sparse_hint}."
            )

    # State, checkpoints and copies

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this class or of the torch class it replaces.

        Live `foreach` and `fused` flags stay, and so do Lookahead values that the checkpoint
        lacks. The loaded tensors are copied, never shared.

        Raises:
            ValueError: the checkpoint is of another optimizer or of other parameters;
                nothing is changed then.
        """
        check_loadable(self, state_dict)
        live = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        keep_live_options(self.param_groups, state_dict["param_groups"], live, _OURS)
        own_state(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend, "_ours": self._ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_plan()
        self._step_supports_amp_scaling = False
        for group in self.param_groups:
            for key in _OURS:
                group.setdefault(key, self._ours[key])

    def _forget_plan(self) -> None:
        self._plan = None
        self._choices = {}


def _check_lookahead(group: dict[str, Any]) -> None:
    k, alpha = group["lookahead_k"], group["lookahead_alpha"]
    if not isinstance(k, int) or isinstance(k, bool) or k < 0:
        raise ValueError(f"Invalid lookahead_k {k!r}: give a whole number, 0 to switch it off.")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"Invalid lookahead_alpha {alpha!r}: give a number from 0 to 1.")
    if k and group.get("differentiable"):
        raise ValueError("lookahead_k cannot be combined with differentiable=True.")
