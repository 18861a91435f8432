"""YAML from anywhere: bombs, depth, huge numbers, loops, and values from the environment."""

import os
import time

import pytest
from omegaconf import OmegaConf

from spectramind_fused.config.limits import of_the_environment, too_large
from tests.command_line import refused, shell

NINE = ["x"] * 9
BOMB = f"a0: &a0 [{', '.join(NINE)}]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
FILES = {
    "a bomb": (BOMB, "stands for more than 20000 values"),
    "a deep one": ("notes: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deep"),
    "a huge number": (f"notes: {'9' * 6000}\n", "4300 digits"),
    "a huge number in base 16": (f"notes: 0x{'f' * 6000}\n", "optimizer.notes is a number of th"),
    "a loop": ("lr: ${optimizer.eps}\n  eps: ${optimizer.lr}\n", "Recursive interpolation"),
    "itself": ("notes: ${optimizer}\n", ""),
    "the environment": ("notes: ${oc.env:HOME}\n", "optimizer.notes is looked up by oc.env"),
    "the clock": ("notes: ${now:%S}\n", "optimizer.notes is looked up by now"),
    "hidden": ("notes: ${oc.decode:${oc.env:HOME}}\n", "is looked up by oc.env"),
}


@pytest.mark.parametrize("what", FILES)
def test_it_is_refused_in_a_sentence_and_soon(what, tmp_path):
    text, said = FILES[what]
    (tmp_path / "optimizer").mkdir()
    head = BOMB if what == "a bomb" else ""
    body = "" if what == "a bomb" else f"  {text}"
    (tmp_path / "optimizer" / "odd.yaml").write_text(
        f"# @package _global_\n{head}optimizer:\n  name: odd\n  type: SGD\n{body}"
    )
    shell("spectramind --version", tmp_path)  # starts the server
    began = time.monotonic()
    words = refused(f"spectramind check --config-dir {tmp_path} optimizer=odd", tmp_path)
    assert time.monotonic() - began < 20
    assert said in words
    assert len(words) < 2000


FOUND = {
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a folder": lambda path: path.mkdir(),
    "a large file": lambda path: path.write_text("#" * 2_000_000),
    "no text": lambda path: path.write_bytes(b"lr: \xff\xfe"),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_is_no_config_is_never_read(what, tmp_path):
    path = tmp_path / "optimizer" / "odd.yaml"
    path.parent.mkdir()
    (path.parent / "around").symlink_to("..")  # folders that never end
    FOUND[what](path)
    (said,) = too_large(tmp_path)
    assert said.startswith(f"{path} is ")
    assert said.endswith(": mend it, or take it away.")
    if what == "a pipe":
        assert said in refused(f"spectramind check --config-dir {tmp_path}", tmp_path)


def test_anchors_that_stay_small_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {d: *a}\n")
    assert too_large(tmp_path) == []


def test_an_override_from_the_environment_is_recorded_nowhere(tmp_path):
    line = "spectramind train 'optimizer.notes=${oc.env:SECRET}' data=synthetic training.epochs=1"
    run = shell(line, tmp_path, SECRET="hunter2")
    assert run.returncode == 2
    assert "optimizer.notes is looked up by oc.env" in run.stderr
    assert "hunter2" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_what_looks_only_at_the_config_is_fine():
    config = OmegaConf.create({"a": "${b}", "b": 1, "c": ["${oc.select:a,2}"], "d": "$ {x:y}"})
    assert of_the_environment(config) == []
    config.e = {"f": ["${random:1}"]}
    (problem,) = of_the_environment(config)
    assert problem.startswith("e.f is looked up by random: ")
