"""csrc, Triton and the classes describe the same tables and the same rules."""

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from spectramind_fused import FusedSGD, multi_tensor
from spectramind_fused.kernels import cpu, cuda, native
from spectramind_fused.multi_tensor import Bucket
from tests.oracle import CLASSES, VARIANTS, name_of
from tests.pairs import steps_taken

LIBRARIES = [
    pytest.param(
        module,
        marks=pytest.mark.skipif(not module._LIBRARY.exists(), reason=f"no {name} kernels here"),
        id=name,
    )
    for module, name in ((cpu, "cpu"), (cuda, "cuda"))
]


@pytest.mark.parametrize("module", LIBRARIES)
def test_a_library_says_what_python_expects(module):
    library = ctypes.CDLL(str(module._LIBRARY))
    library.spectramind_describe.restype = ctypes.c_char_p
    says = library.spectramind_describe().decode().splitlines()
    wanted = native.expected_description() + (native.host_description() if module is cpu else [])
    assert [line for line in says if "rule " not in line] == wanted


@pytest.mark.parametrize("module", LIBRARIES)
@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(native, "MAX_SLOTS", 9),
        lambda patch: patch.setattr(native, "COMMON_SCALARS", 6),
        lambda patch: patch.setattr(native, "STORAGES", {**native.STORAGES, torch.int8: 99}),
    ],
)
def test_a_library_of_another_version_is_refused_in_words(module, change, monkeypatch):
    change(monkeypatch)
    more = native.host_description() if module is cpu else ()
    library, problem = native.loaded(module._LIBRARY, "C++", more)
    assert library is None
    assert re.fullmatch(
        r"the C\+\+ kernels were built by another version of spectramind_fused "
        r"\(\d differences?, such as '[^']+'\); reinstall spectramind_fused",
        problem,
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_library_from_before_there_were_descriptions_is_refused_in_words(tmp_path):
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int spectramind_update() { return 0; }')
    library = tmp_path / "old.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded, problem = native.loaded(library, "C++")
    assert loaded is None
    assert "another version" in problem
    assert "reinstall spectramind_fused" in problem


def test_triton_has_the_same_constants():
    pytest.importorskip("triton")
    from spectramind_fused.kernels.triton import CHUNK, storage, walk
    from spectramind_fused.multi_tensor import storages

    columns = ("COMMON_HYPERPARAMETERS", "COMMON_SCALARS", "SOURCE_COLUMNS", "PLACE_COLUMNS")
    assert walk.FLOAT64.value == multi_tensor.STORAGES[torch.float64]
    for name in (*columns, "PARAM", "GRAD", "STEP", "FIRST_STATE"):
        assert getattr(walk, name).value == getattr(multi_tensor, name)
    for name in ("SLOW_STREAM", "AVERAGE_STREAM"):
        assert getattr(walk, name).value == getattr(storages, name)
    assert storage.GROUP.value == storages.GROUP
    assert CHUNK == storages.PIECE  # a program writes the checksum of its piece


@pytest.mark.parametrize("module", LIBRARIES)
def test_triton_has_the_same_rules(module):
    pytest.importorskip("triton")
    from spectramind_fused.kernels.triton.rules import RULES

    assert native.rules_of(ctypes.CDLL(str(module._LIBRARY))) == {
        (name, states): (rule.hyperparameters, rule.scalars, rule.numbers)
        for name, rule in RULES.items()
        for states in rule.states
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_class_gives_its_rule_what_it_reads(variant):
    kind, options = variant
    optimizer = CLASSES[kind][0]([torch.zeros(2, requires_grad=True)], **options)
    (group,) = optimizer.param_groups
    library = cpu._library()
    for param in (torch.zeros(2), torch.zeros(2, 2)):
        algorithm = optimizer.algorithm.of(param, group)
        states = len(algorithm.states_of(group)) or bool(algorithm.vectors)
        rule = native.rule_of(library, algorithm.rule_of(group), states)
        assert len(algorithm.row_of(group)) == rule.hyperparameters


def test_every_rule_leaves_room_for_slow_and_averaged_weights():
    """Beyond that many a CUDA kernel would write behind its arguments."""
    for _, states in native.rules_of(cpu._library()):
        assert multi_tensor.FIRST_STATE + states + 2 <= multi_tensor.MAX_SLOTS


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_row_of_another_width_is_refused_before_anything_moves(backend):
    class Short(FusedSGD):
        algorithm = replace(FusedSGD.algorithm, hyperparameters=("lr", "momentum", "dampening"))

    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = Short([param], lr=0.1, backend=backend)
    with pytest.raises(ValueError, match=r"'sgd' reads 10 hyperparameters and was given 8"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert steps_taken(optimizer, [param]) == {0}


def test_a_rule_that_the_kernels_lack_is_refused_or_stepped_by_torch():
    """As with a library that was built before the rule was written."""

    class Other(FusedSGD):
        algorithm = replace(FusedSGD.algorithm, rule="adan")

    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    lacking = "the cpu kernels lack the rule 'adan'; reinstall spectramind_fused"
    with pytest.raises(ValueError, match=f"backend='cpu' cannot run: {lacking}"):
        Other([param], lr=0.1, backend="cpu")
    optimizer = Other([param], lr=0.1)
    assert lacking in optimizer.backends()["cpu"]
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.9))


def test_an_unknown_number_of_states_is_refused_in_words():
    with pytest.raises(NotImplementedError, match=r"no rule 'sgd' with 3 states: add it to"):
        native.rule_of(cpu._library(), "sgd", 3)


def test_a_bucket_with_a_slot_too_many_is_refused():
    slots = tuple([torch.zeros(3)] for _ in range(5))
    dtypes = (torch.float32,) * 5
    bucket = Bucket("sgd", 1, False, False, False, slots, dtypes, [0], [0], [(0, 0, 3, 0, 0)])
    with pytest.raises(ValueError, match=r"read 4 slots, at most 8, and were given 5"):
        native.NativeTables(bucket, 1024, native.Rule(5, 6, 0), 0)
