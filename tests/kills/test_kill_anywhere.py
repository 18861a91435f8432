"""A run that is killed at any moment goes on to the end that it would have come to.

A moment is each call by which a run changes its folder, and each step: moments.cpp counts them and
kills the process at a chosen one, also in the middle of a write. Each killed run goes on from its
checkpoint, or begins again where it left none; every other one is killed a second time meanwhile.
"""

import json
import shutil

import pytest
import torch

from spectramind_fused.training.past_runs import PastRun
from tests import draws
from tests.kills import moments
from tests.training.test_loggers import rows, scalars

TINY = ["train", "data=synthetic", "data.channels=4", "data.bins=8", "model.hidden=[4]",
        "training.batch_size=256", "training.epochs=3", "training.checkpoint_every=1",
        "training.accelerator=cpu", "hydra.run.dir=run", "optimizer.fused=true",
        "optimizer.rich_console=false"]  # fmt: skip
KINDS = {
    "adamw": ["logger=csv", "training.keep_checkpoints=2", "scheduler.warmup_steps=2",
              "optimizer.lookahead.enabled=true", "optimizer.ema_decay=0.9"],
    "sgd": ["logger=tensorboard", "optimizer=sgd", "optimizer.accumulate_steps=2",
            "scheduler.name=onecycle", "scheduler.warmup_steps=3", "training.precision=bf16-true",
            "optimizer.stochastic_rounding=true"],
}  # fmt: skip


def same(a, b):
    """Whether two values that a checkpoint may hold are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def end_of(folder, kind):
    """What a run came to, without its times."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    content["config"]["training"].pop("resume")
    result = json.loads((folder / "result.json").read_text())
    result.pop("timing")
    log = rows(folder / "log" / "metrics.csv") if kind == "adamw" else scalars(folder)[0]
    names = {p.name for p in folder.iterdir()}
    return content, result, (folder / "history.csv").read_text(), log, names


def assert_same_end(folder, kind, expected, why):
    """Holds what a run came to beside what another one did."""
    for mine, theirs in zip(end_of(folder / "run", kind), expected, strict=True):
        assert same(mine, theirs), why


def whole_files(folder):
    """Reads all that is there but parts: none may be half written."""
    for path in [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".part")]:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        elif path.suffix == ".md":
            entries = path.read_text(encoding="utf-8").split("\n⸻\n")
            assert all("\t• run folder: " in entry for entry in entries[1:])
    run = PastRun(folder / "run")
    assert run.result is None or run.outcome == ""
    assert len(run.history) <= 3


@pytest.fixture(scope="module", params=KINDS)
def undisturbed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, moments.of_whole(folder, *TINY, *KINDS[request.param])


def test_every_byte_of_a_run_is_seen(undisturbed):
    """So no write goes past the moments."""
    _, folder, seen = undisturbed
    sizes = moments.written(seen)
    there = {f"/{p.relative_to(folder)}": p.stat().st_size
             for p in folder.rglob("*") if p.is_file()}  # fmt: skip
    assert there == {path: sizes[path] for path in there}


@pytest.mark.random
@pytest.mark.parametrize("count", [3, pytest.param(15, marks=pytest.mark.full)])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(
    undisturbed, count, tmp_path, record_property
):
    if draws.rounds and count == 3:
        pytest.skip("the other one takes more of them")
    kind, whole, seen = undisturbed
    words = [*TINY, *KINDS[kind]]
    expected = end_of(whole / "run", kind)
    every = moments.with_torn(seen)
    taken = moments.spread(every, 100 if draws.rounds else count)
    kills = 0
    for i, moment in enumerate(taken):
        folder = tmp_path / str(i)
        folder.mkdir()
        ended, _ = moments.run(folder, *words, at=moment)
        assert ended.returncode == 128 + 9, f"{moment}\n{ended.stderr}"
        kills += 1
        whole_files(folder)
        second = again = seen[(37 * moment.number) % len(seen)] if i % 2 else None
        while True:
            checkpoint = folder / "run" / "checkpoint.pt"
            resume = [f"training.resume={checkpoint}"] if checkpoint.exists() else []
            ended, _ = moments.run(folder, *words, *resume, at=again)
            if ended.returncode == 0:
                break
            assert ended.returncode == 128 + 9, f"{moment}, then {again}\n{ended.stderr}"
            kills += 1
            whole_files(folder)
            again = None
        assert ended.stderr == ""
        assert_same_end(folder, kind, expected, f"{moment}, then {second}")
        assert [p.name for p in folder.rglob("*.part")] == []
        shutil.rmtree(folder)
    record_property(
        "summary", f"{kind}: {len(every)} moments of a run, killed at {len(taken)} of them, "
        f"{kills} kills"
    )  # fmt: skip
