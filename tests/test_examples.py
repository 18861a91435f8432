"""Each example runs as it stands for a few steps, stays short, and is in examples/README.md."""

import ast
import importlib.util
import math
import os
import re
import sys
from pathlib import Path

import pytest

from tests.command_line import cold

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
FILES = sorted(FOLDER.glob("*.py"))
SERVED = "served by {'cpu': 'cpu'}"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]

# Where timm is installed without it. Of torchvision timm's models and schedules use nothing but
# names, which they import: each is an empty class here.
TORCHVISION = """
import sys
from importlib.machinery import ModuleSpec

class Empty(type):
    def __getattr__(cls, name):
        return name

class Submodules:
    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, self, is_package=True) if name.startswith(f"{__name__}.") else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = __getattr__

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Empty(name, (), {})

sys.meta_path.insert(0, Submodules())
"""


def output_of(name, folder, steps, *launcher, needs=()):
    """What an example prints; it leaves nothing in the folder that it is started from."""
    for library in needs:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    own, started_from = folder / "packages", folder / "started from"
    own.mkdir()
    started_from.mkdir()
    if "timm" in needs and importlib.util.find_spec("torchvision") is None:
        (own / "torchvision").mkdir()
        (own / "torchvision" / "__init__.py").write_text(TORCHVISION)
    paths = [str(ROOT), str(own), os.environ.get("PYTHONPATH", "")]
    run = cold(
        started_from, sys.executable, *launcher, str(FOLDER / name), "--steps", str(steps),
        PYTHONPATH=os.pathsep.join(filter(None, paths)), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert os.listdir(started_from) == []
    return run.stdout


def numbers(pattern, text):
    found = [float(number) for number in re.findall(pattern, text)]
    assert all(map(math.isfinite, found)), text
    return found


def test_byte_gpt(tmp_path):
    said = output_of("byte_gpt.py", tmp_path, 3)
    trained, averaged = numbers(r"held-out loss.*: (\S+)", said)
    assert trained < averaged < math.log(256) + 0.5  # the average is behind
    assert SERVED in said


def test_accumulation(tmp_path):
    said = output_of("accumulation.py", tmp_path, 8)
    taken, skipped = numbers(r"(\d+) (?:taken|skipped)", said)
    assert taken + skipped == 8
    assert taken > 0
    assert skipped == len(re.findall(r"norm (?:inf|nan)  skipped$", said, re.MULTILINE)) > 0
    assert SERVED in said


def test_layerwise_decay(tmp_path):
    said = output_of("layerwise_decay.py", tmp_path, 3)
    assert re.findall("one set of launches .*", said) == [
        "one set of launches by 'cpu' steps 148 tensors"
    ]
    ours, alone, torchs = numbers(r"group.*: loss (\S+),", said)
    assert ours == pytest.approx(torchs, abs=2e-4)
    assert ours != alone


def test_cuda_graph_says_that_it_needs_a_gpu(tmp_path):
    said = output_of("cuda_graph.py", tmp_path, 3)
    assert said == "This example captures a CUDA graph, and torch finds no GPU here.\n"


@pytest.mark.full
def test_fsdp2(tmp_path):
    said = output_of("fsdp2.py", tmp_path, 4, *TORCHRUN)
    went_on, again = re.findall(r"gone on to (step 4: loss \S+, norm of all gradients \S+)", said)
    assert went_on == again
    assert SERVED in said


@pytest.mark.full
def test_fsdp2_asks_for_torchrun(tmp_path):
    alone = cold(tmp_path, sys.executable, str(FOLDER / "fsdp2.py"), PYTHONPATH=str(ROOT))
    assert alone.returncode == 1
    assert alone.stderr == f"Start it by torchrun: {command_of(FOLDER / 'fsdp2.py')}\n"


@pytest.mark.full
def test_hf_trainer(tmp_path):
    said = output_of("hf_trainer.py", tmp_path, 3, needs=["transformers", "accelerate"])
    (losses,) = re.findall(r"held-out loss (\S+), with averaged weights (\S+)", said)
    assert float(losses[0]) < float(losses[1]) < math.log(256) + 0.5
    assert f"FusedAdamW {SERVED}" in said


@pytest.mark.full
def test_lightning_module(tmp_path):
    said = output_of("lightning_module.py", tmp_path, 50, needs=["lightning"])
    assert len(numbers(r"step  50  loss \S+  grad norm (\S+)", said)) == 1
    assert len(set(numbers(r"held-out loss.* (\S+)", said))) == 2
    assert f"FusedAdamW {SERVED}" in said


@pytest.mark.full
def test_timm_training(tmp_path):
    said = output_of("timm_training.py", tmp_path, 3, needs=["timm"])
    assert len(numbers(r"held-out accuracy.* (\S+) %", said)) == 2
    assert re.search(r"\d+ with decay 0.0, \d+ with decay 0.05; ", said)
    assert SERVED in said


def command_of(path):
    (command,) = re.findall(r"^# Run it: (.*)$", path.read_text(), re.MULTILINE)
    return command


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < 80
    assert "\n" not in ast.get_docstring(ast.parse(text))
    assert command_of(path).split()[-1] == f"examples/{path.name}"
    assert any(name.startswith(f"test_{path.stem}") for name in globals())


def test_the_table_has_every_example_with_its_command():
    rows = re.findall(
        r"^\| \[`(\S+)`\]\((\S+)\) \| .* \| `(.*)` \|$", (FOLDER / "README.md").read_text(),
        re.MULTILINE,
    )  # fmt: skip
    assert sorted(rows) == [(path.name, path.name, command_of(path)) for path in FILES]
