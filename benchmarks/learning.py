"""Whether models learn with their weights and moments in fewer bits, and the page that says so.

    python -m benchmarks.learning [--seeds 3] [--steps 600]

trains a small byte-level language model on the sources of Python's standard library, and the
spectra's network, once for each way of storing and each seed: the same data, in the same order.
Writes `benchmarks/learning.json`, `benchmarks/learning.png` and `docs/learning.md`. torchao's and
optimi's optimizers are run beside ours where they are installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectramind_fused import FusedAdamW
from spectramind_fused.multi_tensor.storages import STOCHASTIC
from spectramind_fused.stepping.rounding import Draw, Place, narrow
from spectramind_fused.training.data import load_spectra
from spectramind_fused.training.model import SpectrumMLP, gll
from spectramind_fused.training.settings import DataSettings

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "learning.md"
FIGURES, PICTURE = HERE / "learning.json", HERE / "learning.png"
LR, SMALL_LR, DECAY = 2e-3, 1e-4, 0.1
CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 64, 96, 2, 4, 24
HELD_OUT = 400_000  # bytes at the end of the text, which nobody trains on
TASKS = ("text", "small lr", "spectra")
EVERY = 20  # steps of which a curve has one point


class Way(NamedTuple):
    """One way to store a model and its optimizer.

    Attributes:
        name: in tables and pictures.
        dtype: of the parameters.
        make: builds the optimizer for them.
    """

    name: str
    dtype: torch.dtype
    make: Callable[[Any], torch.optim.Optimizer]


def ways() -> list[Way]:
    """Ours, and those of the others that are installed."""
    single, half = torch.float32, torch.bfloat16
    found = [
        Way("float32", single, _ours()),
        Way("float32, 8-bit moments", single, _ours(state_dtype="int8")),
        Way("bfloat16 as torch rounds it", half, _ours()),
        Way("bfloat16, stochastic", half, _ours(stochastic_rounding=True)),
        Way("bfloat16, split", half, _ours(master_weights="split")),
        Way(
            "bfloat16, split, 8-bit moments",
            half,
            _ours(master_weights="split", state_dtype="int8"),
        ),
        Way(
            "bfloat16, stochastic, 8-bit moments",
            half,
            _ours(stochastic_rounding=True, state_dtype="int8"),
        ),
    ]
    try:
        from optimi import AdamW

        found.append(Way("bfloat16, optimi's Kahan", half, _theirs(AdamW, kahan_sum=True)))
    except ImportError:
        pass
    try:
        from torchao.optim import AdamW8bit

        found.append(Way("float32, torchao's 8-bit", single, _theirs(AdamW8bit)))
        stochastic = _theirs(AdamW8bit, bf16_stochastic_round=True)
        found.append(Way("bfloat16, torchao's 8-bit, stochastic", half, stochastic))
    except ImportError:
        pass
    return found


def _ours(**options: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda params: FusedAdamW(params, lr=LR, weight_decay=DECAY, **options)


def _theirs(cls: Any, **options: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = cls(params, lr=LR, weight_decay=DECAY, **options)
        return optimizer

    return make


class ByteModel(nn.Module):
    """A decoder of two layers that predicts the next byte: [n, CONTEXT] to [n, CONTEXT, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Logits, in float32."""
        x = self.bytes_of(text) + self.places(torch.arange(text.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1], dtype=x.dtype)
        logits: Tensor = self.head(self.norm(self.layers(x, mask=mask, is_causal=True)))
        return logits.float()


def standard_library() -> Tensor:
    """The sources of Python's standard library, in the order of their names: uint8."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py"))
    text = b"".join(path.read_bytes() for path in files if "site-packages" not in path.parts)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def language_model(
    way: Way, seed: int, steps: int, lr: float | None, text: Tensor
) -> dict[str, Any]:
    """Trains it; the curve is the training loss, the score that on bytes held out, in nats.

    Args:
        way: how everything is stored, and the optimizer.
        seed: of the weights and the order of the data.
        steps: how many.
        lr: the highest of the schedule; None for each group's own.
        text: bytes.
    """
    torch.manual_seed(seed)
    model = ByteModel().to(way.dtype)
    draw = torch.Generator().manual_seed(seed)

    def batch(first: int, last: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(first, last - CONTEXT - 1, (BATCH,), generator=generator)
        rows = torch.stack([text[s : s + CONTEXT + 1] for s in starts.tolist()]).long()
        return rows[:, :-1], rows[:, 1:]

    def loss_of(rows: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(rows[0]).flatten(0, 1), rows[1].flatten())

    train = (batch(0, len(text) - HELD_OUT, draw) for _ in range(steps))
    curve = _train(model, way, steps, lr, (partial(loss_of, rows) for rows in train))
    with torch.no_grad():
        fixed = torch.Generator().manual_seed(0)
        held_out = [batch(len(text) - HELD_OUT, len(text), fixed) for _ in range(40)]
        score = torch.stack([loss_of(rows) for rows in held_out]).mean()
    return {"curve": curve, "score": float(score)}


def spectra(way: Way, seed: int, steps: int, lr: float | None = LR) -> dict[str, Any]:
    """The shipped network on the fermentation spectra; the score is val/gll. As above."""
    data = load_spectra(DataSettings("spectra", 32, 283, 0.05, 0.2, 0))
    torch.manual_seed(seed)
    model = SpectrumMLP(32, 283, (256, 256)).to(way.dtype)
    draw = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for _ in range(steps):
            rows = torch.randint(0, len(data.train_inputs), (64,), generator=draw)
            inputs, targets = data.train_inputs[rows].to(way.dtype), data.train_targets[rows]
            yield partial(_gll, model, inputs, targets)

    curve = _train(model, way, steps, lr, losses())
    with torch.no_grad():
        score = _gll(model, data.validation_inputs.to(way.dtype), data.validation_targets)
    return {"curve": curve, "score": float(score)}


def _gll(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    mean, sigma = model(inputs)
    return gll(mean, sigma, targets)


def _train(
    model: nn.Module, way: Way, steps: int, lr: float | None, losses: Iterator[Callable[[], Tensor]]
) -> list[float]:
    """Steps down a cosine to nothing after a short warm-up; mean losses of EVERY steps each."""
    optimizer = way.make(model if lr is None else list(model.parameters()))
    peaks = [group["lr"] for group in optimizer.param_groups] if lr is None else lr
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    seen = []
    for loss_of in losses:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen.append(float(loss.detach()))
    groups = [seen[i : i + EVERY] for i in range(0, len(seen), EVERY)]
    return [statistics.fmean(group) for group in groups]


def bytes_held(way: Way) -> float:
    """Of a large parameter after a step: itself, its gradient, everything in its state."""
    param = nn.Parameter(torch.randn(2**18, dtype=way.dtype))
    optimizer = way.make([param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    held = [param, param.grad, *_tensors(optimizer.state[param])]
    return sum(t.nbytes for t in held) / param.numel()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Also those of which a tensor of another library's consists."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            yield from _tensors(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value


class Rounding(NamedTuple):
    """How far the mean of many roundings was off the value.

    Attributes:
        dtype: what was rounded to.
        draws: how many for each exponent.
        exponents: how many.
        worst: the largest error of a mean, in its standard errors.
    """

    dtype: str
    draws: int
    exponents: int
    worst: float


def rounding(draws: int) -> list[Rounding]:
    """Rounds a value at each of many exponents."""
    found = []
    for dtype, exponents in (
        (torch.bfloat16, range(-126, 127, 12)),
        (torch.float16, range(-24, 16, 3)),
    ):
        worst = 0.0
        for exponent in exponents:
            value = torch.tensor(1.7182818 * 2.0**exponent, dtype=torch.float32)
            place = Place(0, 0, draws, 0)
            random = Draw(0, exponent + 200, place).bits(0, draws, value.device)
            (got,) = narrow(STOCHASTIC[dtype], value.expand(draws).contiguous(), random)
            error = (got.double() - value.double()) / value.double()
            worst = max(worst, abs(float(error.mean())) / (float(error.std()) / draws**0.5))
        found.append(Rounding(str(dtype).removeprefix("torch."), draws, len(exponents), worst))
    return found


def run(seeds: int, steps: int, draws: int) -> dict[str, Any]:
    """Everything that the page shows."""
    text = standard_library()
    tasks = {
        "text": lambda way, seed: language_model(way, seed, steps, LR, text),
        "small lr": lambda way, seed: language_model(way, seed, steps, SMALL_LR, text),
        "spectra": lambda way, seed: spectra(way, seed, steps),
    }
    figures: dict[str, Any] = {
        "date": date.today().isoformat(), "device": device(), "versions": versions(),
        "python": platform.python_version(), "bytes of text": len(text),
        "steps": steps, "seeds": seeds, "lr": LR, "small lr": SMALL_LR, "weight_decay": DECAY,
        "rounding": [one._asdict() for one in rounding(draws)], "ways": {},
    }  # fmt: skip
    for way in ways():
        figures["ways"][way.name] = {"bytes": bytes_held(way)}
        for task, train in tasks.items():
            begun = time.perf_counter()
            runs = [train(way, seed) for seed in range(seeds)]
            figures["ways"][way.name][task] = runs
            scores = ", ".join(f"{one['score']:.4f}" for one in runs)
            print(f"{way.name}, {task}: {scores} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return figures


def device() -> str:
    """Processor and threads."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    count = torch.get_num_threads()
    name = names[0] if names else platform.machine()
    return f"{name}, {count} thread{'s' if count > 1 else ''}"


def versions() -> dict[str, str]:
    """Of what was run."""
    found = {}
    for name in ("torch", "spectramind_fused", "torchao", "torch_optimi"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def draw(figures: dict[str, Any], path: Path) -> None:
    """A row for each task: the curves, and how far each is above float32's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(11, 12), layout="constrained")
    titles = {
        "text": "next byte, nats",
        "small lr": f"next byte, nats, lr {figures['small lr']:g}",
        "spectra": "spectra, Gaussian NLL",
    }
    for (curves, apart), (task, title) in zip(axes, titles.items(), strict=True):
        base = _mean_curve(figures["ways"]["float32"][task])
        at = [EVERY * (i + 0.5) for i in range(len(base))]
        for i, (name, way) in enumerate(figures["ways"].items()):
            mean = _mean_curve(way[task])
            style = {"color": f"C{i}", "linewidth": 1.2, "label": name}
            curves.plot(at, mean, **style)
            apart.plot(at, [m - b for m, b in zip(mean, base, strict=True)], **style)
        curves.set_title(f"{title}: training loss", loc="left")
        apart.set_title("above float32", loc="left")
        for axis in (curves, apart):
            axis.set_xlabel("step")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean_curve(runs: list[dict[str, Any]]) -> list[float]:
    return [statistics.fmean(points) for points in zip(*(r["curve"] for r in runs), strict=True)]


def page(figures: dict[str, Any]) -> str:
    """The text of docs/learning.md."""
    lines = [
        "# Learning in fewer bits",
        "",
        "Written by `python -m benchmarks.learning`; what the options mean is in "
        "[Fewer bits](low-precision.md).",
        "",
        f"{figures['device']}; Python {figures['python']}; "
        + ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
        + f"; {figures['date']}. AdamW, lr {figures['lr']:g} on one cycle, weight decay "
        f"{figures['weight_decay']:g}, gradients clipped at 1, {figures['steps']} steps, seeds 0 "
        f"to {figures['seeds'] - 1}. Each way sees the same data in the same order.",
        "",
        "- **text**: a decoder of two layers, 96 wide, predicts the next byte of the sources of "
        f"Python's standard library ({figures['bytes of text'] / 1e6:.1f} MB), in nats on bytes "
        "held out.",
        f"- **small lr**: the same at lr {figures['small lr']:g}, where most updates are smaller "
        "than half a unit in the last place of a bfloat16 weight.",
        "- **spectra**: the shipped network on the fermentation spectra, val/gll.",
        "- **bytes** per parameter are counted from the tensors that are there after a step: the "
        "parameter, gradient and state. Torch's own AdamW holds 16 in float32, 8 in bfloat16.",
        "",
        "Lower is better; ± is the standard deviation between seeds.",
        "",
        "| | bytes | text | small lr | spectra |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, way in figures["ways"].items():
        scores = " | ".join(
            score_with_spread([one["score"] for one in way[task]]) for task in TASKS
        )
        lines.append(f"| {name} | {way['bytes']:.2f} | {scores} |")
    lines += ["", *(_behind(figures, task) for task in TASKS)]
    lines += [
        "",
        "![Loss curves](../benchmarks/learning.png)",
        "",
        "## Rounding",
        "",
        "The mean of many stochastic roundings of one value, at each of many exponents:",
        "",
        "| | draws per exponent | exponents | largest error, in standard errors |",
        "| --- | --- | --- | --- |",
    ]
    for one in figures["rounding"]:
        lines.append(
            f"| {one['dtype']} | {one['draws']:.0e} | {one['exponents']} | {one['worst']:.2f} |"
        )
    lines += [
        "",
        "That the bits are uniform and independent between elements, steps, parameters and slots "
        "(chi-square), and that a split parameter equals a float32 one bit for bit over 1,000 "
        "steps on every backend, is tested: `tests/optim/test_rounding.py`, "
        "`tests/compiled/test_storages.py`.",
        "",
    ]
    return "\n".join(lines)


def _behind(figures: dict[str, Any], task: str) -> str:
    """Who ends above float32 in every seed, and by how much on average: the seeds are paired."""
    base = [one["score"] for one in figures["ways"]["float32"][task]]
    found = []
    for name, way in figures["ways"].items():
        apart = [one["score"] - b for one, b in zip(way[task], base, strict=True)]
        if min(apart) > 0:
            found.append((statistics.fmean(apart), name))
    told = "; ".join(f"{name} by {mean:.4f}" for mean, name in sorted(found, reverse=True))
    return f"- **{task}**: above float32 with every seed: {told or 'none'}."


def score_with_spread(scores: list[float]) -> str:
    """Their mean, and their standard deviation where there are several."""
    spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.4f}{spread}"


def main() -> None:
    """Trains, then writes the figures, the picture and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way; default: 3")
    parser.add_argument("--steps", type=int, default=600, help="of each run; default: 600")
    parser.add_argument("--draws", type=int, default=10**7, help="of each exponent; default: 1e7")
    given = parser.parse_args()
    figures = run(given.seeds, given.steps, given.draws)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, PICTURE)
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
