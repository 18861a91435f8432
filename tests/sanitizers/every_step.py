"""Steps of every rule, in every storage and with every epilogue, for those who watch memory."""

from itertools import product

import torch

from tests.compiled.test_storages import EPILOGUES, EVERY, PICKED
from tests.oracle import CLASSES, RICHEST, VARIANTS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STORAGES = ("state_dtype", "master_weights", "stochastic_rounding")


def combinations(every):
    """Rule, options and dtype of each: those that are stored plainly, then the others.

    Args:
        every: all of them; else each pair of choices is in one.
    """
    variants = VARIANTS if every else list(RICHEST.items())
    for (kind, options), dtype, epilogue in product(variants, DTYPES, EPILOGUES):
        if every or epilogue == "all":
            yield kind, {**options, **EPILOGUES[epilogue]}, dtype
    for chosen in EVERY if every else PICKED:
        stored = {name: chosen[name] for name in STORAGES}
        options = {**RICHEST[chosen["kind"]], **stored, **EPILOGUES[chosen["epilogue"]]}
        yield chosen["kind"], {**options, "low_precision_min_size": 20}, chosen["dtype"]


class Run:
    """An optimizer whose gradients are the same for everybody who has one.

    Attributes:
        params: with no gradient yet.
        optimizer: on the C++ kernels; its steps skip where a gradient is not finite.
    """

    def __init__(self, kind, options, dtype, sizes):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
        self.params = [p.requires_grad_() for p in drawn]
        self.optimizer = CLASSES[kind][0](self.params, backend="cpu", **options)
        self.steps = 0

    def step(self, place=lambda tensor: tensor):
        """One step; the third is scaled, for nobody takes gradients of the same scale twice.

        Args:
            place: is given each gradient, and says where it lies.
        """
        generator = torch.Generator().manual_seed(self.steps)
        scale = 4.0 if self.steps == 2 else None
        for p in self.params:
            p.grad = place(torch.randn(p.shape, generator=generator).mul(scale or 1).to(p.dtype))
        if scale:
            self.optimizer.grad_scale = torch.tensor(scale)
            self.optimizer.found_inf = torch.zeros(())
        self.optimizer.step()
        vars(self.optimizer).pop("grad_scale", None)
        vars(self.optimizer).pop("found_inf", None)
        self.steps += 1

    def held(self):
        """Everything that a step writes to: parameters, states, counters that are kept apart."""
        states = [dict(self.optimizer.state.get(p, {})) for p in self.params]
        values = [v for state in states for v in state.values() if torch.is_tensor(v)]
        return [*self.params, *values, *self.optimizer._counters.values()]
