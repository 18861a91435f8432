"""What is asked of torch while something runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Names of torch's operators, as they run: each would be a launch, or a look at the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not str(func).startswith("profiler."):  # torch's name for the step, in its traces
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
