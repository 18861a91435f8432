"""Each kind of mistake: the message a user sees, and nothing left half written."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.command_line import QUICK, refused, shell, spectramind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # misspelled key
        ("optimizer.weigth_decay=0.1", "is no known key: did you mean 'weight_decay'?"),
        ("optimizer.lookahead.kk=5", "optimizer.lookahead.kk is no known key: did you mean 'k'?"),
        ("sheduler.name=cosine", "config.sheduler is no known key: did you mean 'scheduler'?"),
        ("optimzer=sgd", "optimzer is no known key or group: did you mean 'optimizer'?"),
        # wrong type
        ("optimizer.lr=fast", "optimizer.lr should be a number of at least 0, not 'fast'."),
        ("optimizer.fused=yes", "optimizer.fused should be true or false, not 'yes'."),
        ("optimizer.betas=0.9", "optimizer.betas should be two numbers, each at least 0"),
        ("training.epochs=1.5", "training.epochs should be a whole number of at least 1, not 1.5."),
        # out of range
        ("optimizer.lr=-1", "optimizer.lr should be a number of at least 0, not -1."),
        ("optimizer.betas=[0.9,1.5]", "each at least 0 and below 1, not [0.9, 1.5]."),
        ("optimizer.lookahead.alpha=2", "optimizer.lookahead.alpha should be a number from 0 to 1"),
        ("optimizer.lookahead.k=0", "optimizer.lookahead.k should be a whole number of at least 1"),
        ("optimizer=adafactor optimizer.d=0.5", "optimizer: Clipping threshold d should be >= 1"),
        ("optimizer.type=SparseAdam", "SparseAdam takes sparse gradients"),
        # unknown optimizer
        ("optimizer=adamaxx", "Could not find 'optimizer/adamaxx'"),
        ("optimizer.type=Adamaxx", "not 'Adamaxx': did you mean 'Adamax'?"),
        ("optimizer.type=os.system", "optimizer.type should be one of Adam, AdamW, SGD"),
        # unknown group option
        ("optimizer.auto_param_groups.no_decay=1", "did you mean 'no_decay_patterns'?"),
        ("policy=best", "Could not find 'policy/best'"),
        # comma without -m
        ("optimizer=adamw,sgd", "add --multirun"),
        ("optimizer.lr=1e-3,1e-4", "add --multirun"),
        # contradictions
        ("optimizer.decoupled=false", "optimizer.decoupled contradicts type AdamW"),
        ("optimizer=sgd optimizer.momentum=0", "nesterov needs a momentum above 0"),
        ("optimizer.backend=cpu", "optimizer.backend needs optimizer.fused=true"),
        ("optimizer.fused=true optimizer.foreach=true", "foreach means torch's own step and cont"),
        ("optimizer.differentiable=true", "clip_grad_norm cannot be combined with differentiable"),
        ("training.precision=bf16 optimizer.precision_safe=false", "contradicts"),
        ("policy=best-val optimizer=sgd", "policy.type is AdamW: the values of best-val are tuned"),
        # what cannot be read
        ("--config-dir nowhere", "nowhere is no folder: give one that holds configs"),
        ("--config-name tran", "Cannot find primary config 'tran'"),
        ("training.resume=none.pt", "none.pt is no file: give the path of a checkpoint.pt."),
        ("training.keep_checkpoints=0", "keep_checkpoints should be a whole number of at least 1"),
        # loggers
        ("logger=tensorbord", "Could not find 'logger/tensorbord'"),
        ("logger.name=tensorbord", "not 'tensorbord': did you mean 'tensorboard'?"),
        ("logger=csv logger.evry=5", "logger.evry is no known key: did you mean 'every'?"),
        ("logger=csv logger.every=0", "logger.every should be a whole number of at least 1, not 0"),
        ("logger=csv logger.project=x", "logger.project is no known key: known are name, every"),
        (f"hydra.run.dir={'x' * 300}", f"{'x' * 300} cannot be used: File name too long."),
        ("optimizer.lr=", "optimizer.lr should be a number"),
        ("optimizer.lr", "optimizer.lr"),
    ],
)  # fmt: skip
def test_one_sentence_before_anything_is_written(words, message, tmp_path):
    said = refused(f"spectramind train {words}", tmp_path)
    assert message in said
    assert "append to your config" not in said
    assert list(tmp_path.iterdir()) == []


def test_everything_wrong_is_said_at_once(tmp_path):
    said = refused(
        "spectramind train optimizer.lrr=1 optimizer.eps=x scheduler.name=cosin data.bins=0 "
        "training.seed=a model.hidden=3 logger.every=x",
        tmp_path,
    )
    assert said.startswith("This config has problems:\n")
    assert said.count("\n  - ") == 7


@pytest.mark.parametrize(
    ("blocked", "words", "message"),
    [
        ("logs", "", "optimizer.hash_to_debuglog: {folder}/logs is no folder."),
        (
            "exported",
            "optimizer.export_json=exported/a.json",
            "optimizer.export_json: {folder}/",
        ),
        ("outputs", "optimizer.export_json=null", "hydra.run.dir or hydra.sweep.dir: {folder}/out"),
    ],
)
def test_where_it_cannot_write_it_writes_nothing(blocked, words, message, tmp_path):
    """A file where a folder is needed: what holds for everyone, even root."""
    (tmp_path / blocked).write_text("in the way")
    for line in (f"spectramind train {QUICK} {words}", f"spectramind -m train {QUICK} {words}"):
        assert message.format(folder=tmp_path) in refused(line, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [blocked]
    assert (tmp_path / blocked).read_text() == "in the way"


def test_a_log_that_cannot_be_written_stops_the_run_before_its_records(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log").write_text("in the way")
    run = shell(f"spectramind train {QUICK} logger=csv hydra.run.dir=run", tmp_path)
    assert run.returncode == 2
    assert f"  - logger=csv: {tmp_path}/run/log is no folder.\n" in run.stderr
    assert not (tmp_path / "logs").exists()
    assert not list(tmp_path.rglob("*.json"))


def test_a_log_that_is_switched_off_is_not_asked_for(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    run = shell(f"spectramind train {QUICK} optimizer.hash_to_debuglog=false", tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_corrupt_checkpoint_is_named_and_leaves_no_record(damage, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"no checkpoint" if damage == "text" else b"PK\x03\x04" + b"\0" * 2000)
    said = refused(f"spectramind train {QUICK} training.resume={path}", tmp_path)
    assert f"training.resume={path} cannot be read as a checkpoint" in said
    assert not (tmp_path / "logs").exists()
    assert not list(tmp_path.rglob("*.json"))


def test_two_runs_may_append_to_one_log_at_once(tmp_path):
    def run(seed):
        return spectramind(tmp_path, "train", *QUICK.split(), f"training.seed={seed}")

    with ThreadPoolExecutor() as pool:
        for each in pool.map(run, range(3)):
            assert each.returncode == 0, each.stderr
    log = (tmp_path / "logs" / "v50_debug_log.md").read_text()
    head, *entries = log.split("\n⸻\n")
    assert head == "SpectraMind V50 — Debug & Audit Log\nAppend-only operator log (immutable).\n"
    assert len(entries) == 3
    for entry in entries:
        assert re.fullmatch(r"\S+Z — spectramind train\n(\t• [a-z A-Z]+: .*\n?){10}", entry), entry
    exported = tmp_path / "outputs" / "diagnostics"
    assert [p.name for p in exported.iterdir()] == ["optimizer_adamw.json"]


def test_what_only_the_device_can_tell_is_one_sentence_too(tmp_path):
    words = f"{QUICK} optimizer.fused=true optimizer.backend=triton"
    assert "backend='triton' cannot run: Triton finds no GPU" in refused(
        f"spectramind train {words}", tmp_path
    )
    assert list(tmp_path.iterdir()) == []


def test_one_message_names_all_mistakes_and_keys_that_nothing_has(tmp_path):
    words = ["optimizer.lrr=1", "training.epochs=0", "foo=1", "optimizr=x"]
    run = spectramind(tmp_path, "check", *words)
    assert run.returncode == 2
    for mistake in (
        "optimizer.lrr is no known key: did you mean 'lr'?",
        "training.epochs should be a whole number of at least 1, not 0.",
        "foo is no known key or group: known are base, data, experiment, logger, model, optimizer, "
        "policy, scheduler, training.",
        "optimizr is no known key or group: did you mean 'optimizer'?",
    ):
        assert f"  - {mistake}" in run.stderr.splitlines()


def test_a_choice_that_does_not_exist_is_named_beside_unknown_keys(tmp_path):
    run = spectramind(tmp_path, "check", "optimizer=adamm", "foo=1", "base=sgd")
    assert run.returncode == 2
    assert "Could not find 'optimizer/adamm'" in run.stderr
    assert "foo is no known key or group: known are base, data, experiment, logger," in run.stderr
    assert "base is a group that these configs do not use" in run.stderr
