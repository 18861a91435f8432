"""Configs of any content: a list of problems, or a run that could begin; and never code of theirs.

`--soak N` draws N times as many, others at every run. What was found is an `example` of its test.
"""

import contextlib
import copy
import io
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.draws import examples

pytest.importorskip("lightning_fabric")

from spectramind_fused.cli.runs import _wrong_with
from spectramind_fused.config import limits
from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.compose import Job, composed
from spectramind_fused.config.packaged import packaged_configs
from spectramind_fused.training import settings
from spectramind_fused.training.loop import train

SECONDS = 10  # of the processor that an answer may take
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
CODE = ["os.system", "builtins.eval", "tests.config.test_fuzz.planted", "subprocess.Popen"]

words = st.sampled_from(
    ["", "x", "AdamW", "adamw", "SGD", "true", "null", "nan", "inf", "1e400", "int8", "float32",
     "split", "auto", "cuda", "../../etc/passwd", "a\x00b", "\ud800", "é", "${", "${optimizer}",
     "${training.epochs}", "${oc.env:HOME}", "${oc.decode:${x}}", "_target_", *CODE]
)  # fmt: skip
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 31, 2**31, 2**63, 2**64, 10**30, 10**400, True, False, 0.5, 1.0,
                     -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.integers(), st.floats(),
)  # fmt: skip
keys = st.one_of(
    words, st.sampled_from(["_target_", "_args_", "_partial_", "_convert_", "name", "type", "lr"]),
    st.sampled_from([0, 1.5, True]),
)  # fmt: skip
values = st.recursive(
    st.none() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)

ran = []
seen = {"refused": 0, "accepted": 0, "trained": 0}


def planted(*args, **kwargs):
    """What a config must not reach."""
    ran.append((args, kwargs))


def hook(event, _):
    if watching and event.startswith(FORBIDDEN):
        ran.append(event)


watching = []
sys.addaudithook(hook)


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """So that no model is built that takes all of the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_memory", lambda: 5e8)
        yield


def plain_root():
    (job,) = composed(packaged_configs(), "train", ["data=synthetic"])
    return OmegaConf.to_container(job.config, resolve=False)


def judge(container):
    """What `spectramind check` does with a config once it is composed."""
    try:
        config = OmegaConf.create(container)
        OmegaConf.set_struct(config, True)
    except (OmegaConfBaseException, ValueError):
        return  # no YAML says that
    with watched():
        try:
            problems = limits.of_the_environment(config) + limits.too_long(config)
            problems = problems or _wrong_with(job_of(config), False)
        except OmegaConfBaseException:
            problems = ["said by whoever composes it"]
    note(problems)


def job_of(config):
    return Job(config, Path(), False, OmegaConf.create({}))


@contextlib.contextmanager
def watched():
    """What runs here must answer soon, and run nothing of a config's."""
    watching.append(True)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        watching.clear()
    assert time.process_time() - began < SECONDS
    assert not ran


def note(problems):
    assert all(isinstance(problem, str) and problem for problem in problems)
    seen["refused" if problems else "accepted"] += 1


def places(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


ROOT = plain_root()
PLACES = list(places(ROOT))
changes = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "add", "drop"]), keys, values),
    min_size=1, max_size=4,
)  # fmt: skip


def changed(steps):
    root = copy.deepcopy(ROOT)
    for path, how, key, value in steps:
        holder = root
        for name in path[:-1]:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        if how == "drop":
            holder.pop(path[-1], None)
        elif how == "add" and isinstance(holder.get(path[-1]), dict):
            holder[path[-1]][key] = value
        else:
            holder[path[-1]] = value
    return root


def test_what_runs_is_noticed():
    with pytest.raises(AssertionError), watched():
        subprocess.run(["true"], check=True)
    assert ran == ["subprocess.Popen"]
    ran.clear()


@pytest.mark.random
@given(steps=changes)
@example([(("training", "epochs"), "set", "", 2**20000)])
@example([(("optimizer", "clip_grad_norm"), "set", "", 10**400)])
@example([(("training", "resume"), "set", "", 300 * "x")])
@examples(150)
def test_a_config_of_any_content_is_judged(steps):
    judge(changed(steps))


texts = st.one_of(
    words,
    st.text(alphabet="ab1=,.:[]{}()\"'\\$~+@/ *&!|>%-\n", max_size=12),
    numbers.map(str),
    st.text(max_size=6),
)
overrides = st.lists(
    st.tuples(
        st.sampled_from(["", "", "+", "++", "~"]),
        st.sampled_from(PLACES).map(lambda path: ".".join(map(str, path))) | texts,
        st.sampled_from(["=", "=", "=", "", "@"]),
        texts,
    ).map("".join),
    min_size=1, max_size=3,
)  # fmt: skip


@pytest.mark.random
@given(typed=overrides)
@example(["+="])
@examples(60)
def test_a_command_line_of_any_content_is_judged(typed):
    problems = []
    with watched():
        try:
            for job in composed(packaged_configs(), "train", typed, sweep=True):
                problems += _wrong_with(job, False)
        except ConfigError as error:
            problems += error.problems
    note(problems)


@pytest.mark.random
@given(text=st.one_of(texts, values.map(yaml.safe_dump), st.binary(max_size=40)))
@example("?")
@examples(40)
def test_a_file_of_any_content_is_judged(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimizer" / "odd.yaml"
        path.parent.mkdir()
        body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        path.write_bytes(b"# @package _global_\noptimizer:\n  type: SGD\n" + body)
        problems = []
        with watched():
            try:
                for job in composed(Path(folder), "train", ["optimizer=odd"]):
                    problems += _wrong_with(job, False)
            except ConfigError as error:
                problems += error.problems
    note(problems)


SMALL = {"epochs": 1, "devices": 1, "resume": None, "accelerator": "cpu", "checkpoint_every": 1}


@pytest.mark.random
@given(where=st.sampled_from(PLACES), value=numbers | words)
@examples(20)
def test_what_is_accepted_trains(where, value):
    root = changed([(where, "set", "", value)])
    root["logger"] = {"name": "none"}
    quiet = {"export_json": None, "hash_to_debuglog": False}
    for section, told in {"training": SMALL, "optimizer": quiet}.items():
        if isinstance(root.get(section), dict):
            root[section] |= told
    try:
        config = OmegaConf.create(root)
        OmegaConf.set_struct(config, True)
        if limits.of_the_environment(config) or _wrong_with(job_of(config), False):
            return
    except (OmegaConfBaseException, ValueError):
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        contextlib.suppress(ConfigError),
    ):
        warnings.simplefilter("ignore")
        train(config, Path(folder), [])
    seen["trained"] += 1


def test_figures(record_property):
    """Said last: how many were judged by the tests above."""
    assert seen["refused"] > 10
    record_property("summary", f"configs of any content: {seen}")
