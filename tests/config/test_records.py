"""Records: hashes, the append-only log, the JSON export."""

import hashlib
import json
import subprocess
import sys

from spectramind_fused.config import records

RECORD = {
    "time": "2026-11-23T00:00:00Z",
    "optimizer": {"name": "sgd", "type": "SGD", "lr": 0.1, "momentum": 0.9},
    "backend": {"cpu": "cpu"},
    "config_hash": "a" * 64,
    "run_hash": "b" * 64,
    "git_sha": "c",
    "overrides": ["optimizer=sgd", "optimizer.lr=0.1"],
    "run_folder": "somewhere",
}
APPEND = """
import json, sys
from pathlib import Path
from spectramind_fused.config import records
for _ in range(20):
    records.append_debug_log(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


def test_the_hash_is_that_of_canonical_json():
    node = {"b": [1, 2.5], "a": None}
    expected = hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()
    assert records.config_hash(node) == expected
    assert records.config_hash({"a": None, "b": [1, 2.5]}) == expected


def test_the_log_has_a_header_once_and_an_entry_per_run(tmp_path):
    log = tmp_path / "logs" / "v50_debug_log.md"
    records.append_debug_log(RECORD, log)
    records.append_debug_log(RECORD, log)
    lines = log.read_text().splitlines()
    assert lines[0] == "SpectraMind V50 — Debug & Audit Log"
    assert lines[1] == "Append-only operator log (immutable)."
    assert lines.count("⸻") == 2
    assert lines.count("2026-11-23T00:00:00Z — spectramind train") == 2
    assert "\t• optimizer: sgd (SGD)" in lines
    assert "\t• momentum: 0.9" in lines
    assert f"\t• config hash: {'a' * 12}" in lines
    assert "\t• overrides: optimizer=sgd optimizer.lr=0.1" in lines


def test_two_runs_may_append_at_once(tmp_path):
    log = tmp_path / "log.md"
    command = [sys.executable, "-c", APPEND, json.dumps(RECORD), str(log)]
    for run in [subprocess.Popen(command) for _ in range(2)]:
        assert run.wait() == 0
    text = log.read_text()
    assert text.count("Audit Log") == 1
    entry = text[text.index("\n⸻") :]
    assert entry == entry[: len(entry) // 40] * 40


def test_the_export_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "optimizer.json"
    records.export_json({"lr": 1}, path)
    records.export_json({"lr": 2}, path)
    assert json.loads(path.read_text()) == {"lr": 2}
    assert [p.name for p in path.parent.iterdir()] == ["optimizer.json"]
