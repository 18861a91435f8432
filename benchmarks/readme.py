"""Writes the performance page, the README's figures and the chart, from results.csv.

python -m benchmarks.readme
python -m benchmarks.readme --gpu build/gpu.json             # keeps it, in place of that GPU's last
python -m benchmarks.readme --gpu played.json --to page.md   # only the table, only there
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import projection
from benchmarks.chart import draw
from benchmarks.gpu import table
from spectramind_fused.bench.contenders import OURS, PEERS, WITHOUT_KERNELS
from spectramind_fused.bench.measure import Row
from spectramind_fused.bench.programs import PROGRAMS, K
from spectramind_fused.bench.report import read_rows
from spectramind_fused.bench.workloads import WORKLOADS
from spectramind_fused.optim import OPTIMIZERS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "performance.md"
GPUS = HERE / "gpus"  # what was measured on each GPU, once it was
BEGIN = "<!-- written by `make bench`; do not edit -->"
END = "<!-- until here -->"
_OTHERS = [kind for kind in OPTIMIZERS if kind != "AdamW"]


class Results:
    """The figures of one device and one set of versions."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._of = {(r.workload, r.optimizer, r.dtype, r.program, r.contender): r for r in rows}

    @classmethod
    def latest(cls, rows: list[Row]) -> Results:
        """Those of the device and versions that were measured last."""
        newest = max(rows, key=lambda row: row.date)
        key = (newest.device, newest.versions)
        return cls([row for row in rows if (row.device, row.versions) == key])

    def ms(self, workload: str, kind: str, dtype: str, program: str, who: str) -> float | None:
        """A median, or None where it was not measured."""
        row = self.row(workload, kind, dtype, program, who)
        return None if row is None else row.median_ms

    def row(self, workload: str, kind: str, dtype: str, program: str, who: str) -> Row | None:
        """Everything about one contender."""
        return self._of.get((WORKLOADS[workload].name, kind, dtype, program, who))

    def host(self, workload: str, program: str, backend: str) -> float | None:
        """Python's milliseconds for a step on a GPU, or None where they were not measured."""
        key = (workload, "AdamW", "float32", program, f"{OURS.name}, {backend}")
        row = self._of.get(key)
        return None if row is None else row.median_ms

    def best(
        self, workload: str, kind: str, dtype: str, program: str, whose: str = ""
    ) -> tuple[str, float]:
        """The fastest of those that are not ours and whose name begins so."""
        name, wanted = WORKLOADS[workload].name, (kind, dtype, program)
        found = [
            (row.median_ms, row.contender)
            for row in self.rows
            if row.workload == name
            and (row.optimizer, row.dtype, row.program) == wanted
            and not row.contender.startswith(OURS.name)
            and row.contender.startswith(whose)
        ]
        ms, who = min(found)
        return who, ms


# AdamW in float32: program, workload, whose, how many times as fast as it we mean to be.
_TIMES_AS_FAST = (
    ("step", "tiny", "DeepSpeed", 5.0),
    ("step", "tiny", "torch, foreach", 20.0),
    ("step", "tiny", "torch, fused", 6.0),
    ("backward", "tiny", "torch, fused", 6.0),
    ("backward", "tiny", "torch, foreach", 12.0),
    ("step", "small", "DeepSpeed", 8.0),
    ("step", "small", "torch, foreach", 40.0),
)
# Microseconds of Python's for a step on a GPU: workload, program, at most.
_OF_PYTHON = (
    ("148 tensors", "host_tail", 60),
    ("2,000 tensors", "host", 500),
    ("2,000 tensors", "host_tail", 500),
    ("2,000 DTensors", "host", 1000),
)


def aims(results: Results) -> list[tuple[str, str, bool]]:
    """What we set out to reach, what was seen, and whether that is it."""
    return [
        (f"{what}: {'at most' if at_most else 'at least'} {wanted:g}", f"{seen:.3g}{beside}",
         seen <= wanted if at_most else seen >= wanted)
        for what, seen, wanted, beside, at_most in _aims(results)
    ]  # fmt: skip


def _aims(results: Results) -> Iterator[tuple[str, float, float, str, bool]]:
    """What, how much was seen, how much was wanted, beside whom, and whether it is at most that."""
    for dtype in ("float32", "bfloat16", "float16"):
        plain = ("gpt2", "AdamW", dtype, "step")
        row = results.row(*plain, OURS.name)
        if row is None:
            continue
        who, best = results.best(*plain)
        what = f"AdamW, {dtype}, GPT-2 small"
        beside = f" ({who})"
        yield (
            f"{what}, times as fast as the fastest other",
            best / row.median_ms,
            1.0,
            beside,
            False,
        )
        if dtype != "float16":
            yield f"{what}, part of the memory's limit", row.of_memory_limit, 0.95, "", False
        tail = ("gpt2", "AdamW", dtype, "amp_tail")
        row = results.row(*tail, OURS.name)
        if row:
            who, best = results.best(*tail, whose="torch")
            ratio = results.row(*tail, who).bytes_per_parameter / row.bytes_per_parameter  # type: ignore[union-attr]
            what = f"whole tail, {dtype}, GPT-2 small"
            yield f"{what}, part of the memory's limit", row.of_memory_limit, 0.95, "", False
            times = f"{what}, times as fast as torch's best, whose bytes are as many times ours"
            yield times, best / row.median_ms, round(ratio, 2), f" ({who})", False
    for program, workload, who, wanted in _TIMES_AS_FAST:
        case = (workload, "AdamW", "float32", program)
        own, theirs = results.ms(*case, OURS.name), results.ms(*case, who)
        if own and theirs:
            what = f"AdamW, {WORKLOADS[workload].name}, {PROGRAMS[program].title}"
            yield f"{what}, times as fast as {who}", theirs / own, wanted, "", False
    for name in ("gpt2", "tiny"):
        case = (name, "AdamW", "float32", "participants")
        same = results.ms(*case, f"{OURS.name}, the same")
        others = results.ms(*case, f"{OURS.name}, others at every step")
        if same and others:
            what = f"other participants at every step, {WORKLOADS[name].name}, times the same ones"
            yield what, others / same, 1.5, "", True
        case = (name, "AdamW", "float32", "step")
        own = results.ms(*case, WITHOUT_KERNELS)
        if own:
            who, best = results.best(*case, whose="torch")
            what = f"AdamW, float32, {WORKLOADS[name].name}, no kernels, times torch's best"
            yield what, own / best, 1.1, f" ({who})", True
        case = (name, "AdamW", "float32", "lookahead")
        off = results.ms(*case, f"{OURS.name}, off")
        between = results.ms(*case, f"{OURS.name}, between syncs")
        if off and between:
            what = f"Lookahead between syncs, {WORKLOADS[name].name}, times a step without"
            yield what, between / off, 1.02, "", True
    for workload, program, wanted in _OF_PYTHON:
        for backend in ("triton", "cuda"):
            seen = results.host(workload, program, backend)
            if seen:
                tail = "whole tail" if program == "host_tail" else "the step alone"
                what = f"Python's microseconds for {workload} on a GPU, {backend}, {tail}"
                yield what, 1e3 * seen, wanted, "", True


def figures(results: Results) -> str:
    """The tables, in Markdown."""
    first = results.rows[0]
    peers = {r.contender: r for r in results.rows}
    others = sorted(
        {
            f"{p.package} {peers[p.name].contender_version}"
            for p in PEERS
            if p.name in peers and p.package != "torch"
        }
    )
    lines = [
        f"{_dates(results.rows)}, {first.device}; {first.versions}"
        f"{'; ' if others else ''}{', '.join(others)}. Median milliseconds per step, one step of",
        "each in turn; quartiles, bytes and shares of the memory's limit are in",
        "[benchmarks/results.csv](../benchmarks/results.csv).",
        "",
        "![bars](../benchmarks/results.png)",
    ]
    for title, kinds, dtype, program, workloads in (
        ("AdamW, float32, the step alone", ["AdamW"], "float32", "step", list(WORKLOADS)),
        (
            f"AdamW, float32, {PROGRAMS['tail'].title} (k = {K})",
            ["AdamW"], "float32", "tail", list(WORKLOADS),
        ),
        (
            f"AdamW, float32, {PROGRAMS['amp_tail'].title} (k = {K})",
            ["AdamW"], "float32", "amp_tail", list(WORKLOADS),
        ),
        (
            f"AdamW, float32, {PROGRAMS['backward'].title}",
            ["AdamW"], "float32", "backward", list(WORKLOADS),
        ),
        ("AdamW, bfloat16, the step alone", ["AdamW"], "bfloat16", "step", list(WORKLOADS)),
        ("AdamW, float16, the step alone", ["AdamW"], "float16", "step", list(WORKLOADS)),
        (
            f"AdamW, bfloat16, {PROGRAMS['amp_tail'].title} (k = {K})",
            ["AdamW"], "bfloat16", "amp_tail", list(WORKLOADS),
        ),
        (
            "The others, float32, the step alone",
            _OTHERS, "float32", "step", ["gpt2", "tiny"],
        ),
        (
            "Of whole matrices, AdamW for the rest, float32, the step alone",
            [*OPTIMIZERS], "float32", "step", ["decoder"],
        ),
    ):  # fmt: skip
        lines += _table(results, title, kinds, dtype, program, workloads)
    lines += _lookahead(results)
    lines += _storages(results)
    lines += _of_python(results)
    lines += ["", "| aim | seen | |", "| --- | --- | --- |"]
    lines += [
        f"| {what} | {seen} | {'met' if met else 'missed'} |" for what, seen, met in aims(results)
    ]
    return "\n".join(lines)


def _table(
    results: Results,
    title: str,
    kinds: list[str],
    dtype: str,
    program: str,
    workloads: list[str],
) -> list[str]:
    cases = [(w, kind, dtype, program) for kind in kinds for w in workloads]
    cases = [case for case in cases if results.row(*case, OURS.name)]
    names = [OURS.name, f"{OURS.name}, cuda", WITHOUT_KERNELS, *(p.name for p in PEERS)]
    names += [f"{name}, graph" for name in names]
    names = [n for n in names if any(results.ms(*case, n) for case in cases)]
    if not cases:
        return []
    lines = ["", f"| {title} | " + " | ".join(names) + " | ours, of the memory's limit |"]
    lines.append("| --- |" + " --- |" * (len(names) + 1))
    for case in cases:
        times = {name: results.ms(*case, name) for name in names}
        fastest = min(t for t in times.values() if t is not None)
        row = results.row(*case, OURS.name)
        assert row is not None
        cells = [_cell(t, t == fastest) for t in times.values()]
        what = WORKLOADS[case[0]].name
        label = what if len(kinds) == 1 else f"{case[1]}, {what}"
        share = "" if math.isnan(row.of_memory_limit) else f"{row.of_memory_limit:.0%}"
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {share} |")
    return lines


def _cell(ms: float | None, fastest: bool) -> str:
    if ms is None:
        return ""
    text = f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
    return f"**{text}**" if fastest else text


def _lookahead(results: Results) -> list[str]:
    cases = [(w, "AdamW", "float32", "lookahead") for w in ("gpt2", "tiny")]
    names = list(dict.fromkeys(r.contender for r in results.rows if r.program == "lookahead"))
    lines = ["", "| AdamW with Lookahead, float32 | " + " | ".join(names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    for case in cases:
        cells = [_cell(results.ms(*case, name), False) for name in names]
        lines.append(f"| {WORKLOADS[case[0]].name} | " + " | ".join(cells) + " |")
    return lines if names else []


def _storages(results: Results) -> list[str]:
    rows = [row for row in results.rows if row.program == "storages"]
    lines = ["", "| AdamW on GPT-2 small, stored in different ways | ms | bytes per parameter "
             "| of the memory's limit |", "| --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row.dtype}: {row.contender} | {_cell(row.median_ms, False)} "
            f"| {row.bytes_per_parameter:.4g} | {row.of_memory_limit:.0%} |"
        )
    return lines if rows else []


def _of_python(results: Results) -> list[str]:
    workloads = list(dict.fromkeys(r.workload for r in results.rows if r.program == "host"))
    columns = [(p, b) for p in ("host", "host_tail") for b in ("triton", "cuda")]
    names = [f"{b}, {'the step alone' if p == 'host' else PROGRAMS['tail'].title}"
             for p, b in columns]  # fmt: skip
    lines = ["", "| Python's microseconds on a GPU, its kernels replaced by nothing | "
             + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]  # fmt: skip
    for workload in workloads:
        cells = [f"{1e3 * (results.host(workload, *column) or 0):.0f}" for column in columns]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return lines if workloads else []


def _dates(rows: list[Row]) -> str:
    """On which rows were measured: not all of them every time."""
    first, last = min(row.date for row in rows), max(row.date for row in rows)
    return first if first == last else f"{first} to {last}"


def summary(results: Results) -> str:
    """One speed and one memory figure, for the README."""
    first = results.rows[0]
    names = [OURS.name, "torch, fused", "torch, foreach"]
    programs = ("step", "tail", "amp_tail")
    lines = [
        "| AdamW on GPT-2 small, float32, ms per step | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for program in programs:
        times = [results.ms("gpt2", "AdamW", "float32", program, name) for name in names]
        title = PROGRAMS[program].title if program != "step" else "the step alone"
        fastest = min((t for t in times if t is not None), default=None)
        lines.append(f"| {title} | " + " | ".join(_cell(t, t == fastest) for t in times) + " |")
    shown = [r for r in results.rows if (r.optimizer, r.dtype) == ("AdamW", "float32")]
    bytes_moved = (projection.TAIL.total, projection.TORCHS_TAIL)
    lines.append(
        "| memory traffic of the last, bytes per parameter | {:g} | {:g} | |".format(*bytes_moved)
    )
    lines += [
        "",
        f"Measured on {_dates(shown)}: {first.device}; {first.versions}.",
    ]
    for held in _measured():
        lines += ["", table.line(held)]
    return "\n".join(lines)


def between_markers(text: str) -> str:
    """Text as it stands in a page that is rewritten."""
    return "\n\n".join((BEGIN, text, END))


def section(rows: list[Row]) -> str:
    """What stands between the markers of the performance page."""
    measured = figures(Results.latest(rows)) if rows else "Nothing has been measured yet."
    return between_markers("\n\n".join((measured, _on_gpus())))


def _measured() -> list[dict[str, Any]]:
    """What was found on each GPU, the newest first."""
    found = [table.read(path) for path in sorted(GPUS.glob("*.json"))]
    return sorted(found, key=lambda held: str(held["date"]), reverse=True)


def _on_gpus() -> str:
    if every := _measured():
        sections = [f"### On an {table.name(held)}\n\n{table.markdown(held)}" for held in every]
        return "\n\n".join(sections)
    return "### On GPUs: a projection, not a measurement\n\n" + projection.markdown()


def replaced(text: str, new: str) -> str:
    """A page with a new section."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + new + after


def main(words: list[str] | None = None) -> int:
    """Rewrites both pages and draws the chart."""
    given = _parser().parse_args(words)
    try:
        if given.to is not None:
            if given.gpu is None:
                raise ValueError("--to needs --gpu FILE.")
            given.to.write_text(f"{table.markdown(table.read(given.gpu))}\n")
            print(f"wrote {given.to}")
            return 0
        if given.gpu is not None:
            _keep(given.gpu)
    except ValueError as error:
        print(f"benchmarks.readme: {error}", file=sys.stderr)
        return 2
    rows = read_rows(HERE / "results.csv")
    PAGE.write_text(replaced(PAGE.read_text(), section(rows)))
    print(f"wrote {PAGE.name}")
    if rows:
        latest = Results.latest(rows)
        README.write_text(replaced(README.read_text(), between_markers(summary(latest))))
        draw(latest.rows, HERE / "results.png")
        print(f"wrote {README.name} and results.png")
    return 0


def _keep(path: Path) -> None:
    """Puts measurements where the pages are made from; refuses what was played."""
    held = table.read(path)
    if held["played"]:
        raise ValueError(f"{path} was played on a CPU: it goes to no page, only to a file by --to.")
    kept = GPUS / f"{re.sub('[^a-z0-9]+', '-', table.name(held).lower())}.json"
    if path.resolve() != kept.resolve():
        GPUS.mkdir(exist_ok=True)
        shutil.copyfile(path, kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", metavar="FILE", type=Path, help="of `python -m benchmarks.gpu`")
    parser.add_argument("--to", metavar="FILE", type=Path, help="the GPU's table goes here alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
