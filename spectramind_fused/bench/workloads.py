"""Shapes to step: those of known models, and a user's own."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

Shape = tuple[int, ...]


class Workload(NamedTuple):
    """What is stepped.

    Attributes:
        name: as tables say it.
        shapes: one for each parameter.
    """

    name: str
    shapes: list[Shape]

    @property
    def parameters(self) -> int:
        """Elements in all."""
        return sum(map(math.prod, self.shapes))


def resnet50() -> list[Shape]:
    """ResNet-50 (He et al. 2015): 161 tensors, 25.6 M parameters."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            out = 4 * width
            convolutions = [(width, width_in, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            if block == 0:
                convolutions.append((out, width_in, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            width_in = out
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> list[Shape]:
    """GPT-2 small (Radford et al. 2019): 148 tensors, 124 M parameters."""
    d = 768
    layer: list[Shape] = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,)]
    layer += [(d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *layer * 12, (d,), (d,)]


def llama(layers: int, d: int, hidden: int, key_value: int, tied: bool) -> list[Shape]:
    """A Llama 3 model (Grattafiori et al. 2024), by its published configuration."""
    attention: list[Shape] = [(d, d), (key_value, d), (key_value, d), (d, d)]
    layer: list[Shape] = [*attention, (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    embeddings: list[Shape] = [(128256, d)] * (1 if tied else 2)
    return [*embeddings, *layer * layers, (d,)]


def decoder(layers: int, d: int) -> list[Shape]:
    """Between the embeddings of a decoder: matrices, and some vectors."""
    layer: list[Shape] = [(d,), (3 * d, d), (d, d), (d,), (4 * d, d), (d, 4 * d)]
    return layer * layers


WORKLOADS = {
    "resnet50": Workload("ResNet-50", resnet50()),
    "gpt2": Workload("GPT-2 small", gpt2_small()),
    "tiny": Workload("2,000 x 550", [(550,)] * 2000),
    "small": Workload("10,000 x 64", [(64,)] * 10000),
    "decoder": Workload("12 layers of 256", decoder(12, 256)),
    "huge": Workload("one of 100 M", [(100_000_000,)]),
}


def of_model(where: str) -> Workload:
    """The shapes of a model that a function builds.

    Args:
        where: `module:function`; the function takes nothing and returns a torch.nn.Module. It is
            called on the meta device, which makes no weights, and if it fails there, without.

    Raises:
        ValueError: there is no such function, or it returns no module with parameters.
    """
    module, _, name = where.partition(":")
    if not module or not name:
        raise ValueError(f"--model {where!r}: give module:function, such as my.models:build.")
    sys.path.insert(0, "")  # as `python -m` does: the user's modules are here
    try:
        build = getattr(importlib.import_module(module), name)
        try:
            with torch.device("meta"):
                model = build()
        except Exception:
            model = build()
        shapes = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--model {where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not shapes:
        raise ValueError(f"--model {where}: the model has no parameter that requires a gradient.")
    return Workload(where, shapes)


def of_file(path: Path) -> Workload:
    """Shapes from a text file: a line each, as `768 x 3072`, with `# comments`.

    A line may begin with how often it counts: `12 * 768 x 3072`.

    Raises:
        ValueError: the file cannot be read, or holds something else, or nothing.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--shapes {path}: {error}") from error
    shapes: list[Shape] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(?:(\d+)\s*\*\s*)?(\d+(?:\s*[x, ]\s*\d+)*)", text)
        if found is None:
            raise ValueError(
                f"--shapes {path}, line {number}: {text!r} is no shape; write 768 x 3072, "
                "or 12 * 768 x 3072 for twelve of them."
            )
        shapes += [tuple(map(int, re.findall(r"\d+", found[2])))] * int(found[1] or 1)
    if not shapes:
        raise ValueError(f"--shapes {path}: the file holds no shape.")
    return Workload(path.name, shapes)
