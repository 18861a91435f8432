"""Shapes: of known models, of a user's model, of a file."""

import pytest
import torch

from spectramind_fused.bench.workloads import WORKLOADS, of_file, of_model


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("tiny", 2000, 1_100_000),
        ("small", 10_000, 640_000),
        ("decoder", 72, 9_443_328),
        ("huge", 1, 100_000_000),
    ],
)
def test_the_known_ones_have_their_published_sizes(name, tensors, parameters):
    assert len(WORKLOADS[name].shapes) == tensors
    assert WORKLOADS[name].parameters == parameters


def test_gpt2_has_the_shapes_of_the_library_that_ships_it():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    shapes = sorted(tuple(p.shape) for p in model.parameters())
    assert shapes == sorted(WORKLOADS["gpt2"].shapes)


def test_a_file_of_shapes(tmp_path):
    path = tmp_path / "shapes.txt"
    path.write_text("# a head\n2 * 768 x 3072  # twice\n283\n3x3, 64\n\n7 8\n")
    assert of_file(path).shapes == [(768, 3072), (768, 3072), (283,), (3, 3, 64), (7, 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("768 x\n", "line 1: '768 x' is no shape; write 768 x 3072"),
        ("4\n-3\n", "line 2: '-3' is no shape"),
        ("# nothing\n", "holds no shape"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "shapes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        of_file(path)
    with pytest.raises(ValueError, match="No such file"):
        of_file(tmp_path / "absent.txt")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "def build():\n    return torch.nn.Linear(32, 283)\n"
        "def reads():\n    assert torch.zeros(1).item() == 0\n    return torch.nn.Linear(2, 3)\n"
        "def empty():\n    return torch.nn.ReLU()\n"
        "def fails():\n    raise OSError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)


def test_a_model_of_the_users(module):
    assert of_model("my_models:build").shapes == [(283, 32), (283,)]
    assert of_model("my_models:reads").shapes == [(3, 2), (3,)]  # not on the meta device


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("my_models", "give module:function"),
        ("my_models:", "give module:function"),
        ("nowhere:build", "ModuleNotFoundError: No module named 'nowhere'"),
        ("my_models:absent", "AttributeError"),
        ("my_models:empty", "no parameter that requires a gradient"),
        ("my_models:fails", "OSError: no weights"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(module, where, message):
    with pytest.raises(ValueError, match=message):
        of_model(where)
