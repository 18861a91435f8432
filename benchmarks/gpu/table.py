"""The JSON of a run as the tables of the performance page, and one line of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from spectramind_fused.bench.contenders import OURS
from spectramind_fused.bench.programs import PROGRAMS, K

PLAYED = "PLAYED ON A CPU, NOT MEASURED"
_CASE = ("optimizer", "model", "dtype", "program")  # what tells two cases apart
_STORAGES = "storages"  # of ours alone in many ways, so it has no aim
Row = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """A result of `python -m benchmarks.gpu`.

    Raises:
        ValueError: the file is something else, or has no times.
    """
    try:
        held: dict[str, Any] = json.loads(path.read_text())
        held["played"], held["phases"]["time"]["found"]["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} holds no times: give a result of `python -m benchmarks.gpu`."
        ) from None
    return held


def markdown(held: dict[str, Any]) -> str:
    """Everything that was timed, what was missed, and which phases did not pass.

    Args:
        held: the JSON; what was played is labelled in every table.
    """
    rows, label = _rows(held), f"{PLAYED}: " if held["played"] else ""
    lines = [
        f"{label}{_what(held)}. Median milliseconds on the device, Python's own beside ours in",
        "brackets; replayed as CUDA graphs where it says so. The last column is what our bytes",
        "reach of the bandwidth of a copy, measured in the same run.",
    ]
    adamw = [row for row in rows if row["optimizer"] == "AdamW"]
    for dtype in dict.fromkeys(row["dtype"] for row in adamw):
        for program in dict.fromkeys(row["program"] for row in adamw):
            of_both = [r for r in adamw if (r["dtype"], r["program"]) == (dtype, program)]
            title = f"AdamW, {dtype}: {_titled(program)}"
            of_one = _stored if program == _STORAGES else partial(_table, "model")
            lines += of_one(title, of_both, label)
    others = [row for row in rows if row["optimizer"] != "AdamW"]
    for what in dict.fromkeys((row["model"], row["dtype"], row["program"]) for row in others):
        model, dtype, program = what
        of_it = [r for r in others if (r["model"], r["dtype"], r["program"]) == what]
        title = f"The others, {dtype}, {model}: {_titled(program)}"
        lines += _table("optimizer", title, of_it, label)
    lines += ["", f"| {label}aim | seen | |", "| --- | --- | --- |"]
    lines += [f"| {w} | {seen} | {'met' if met else 'missed'} |" for w, seen, met in aims(held)]
    bad = [f"{n} {p['outcome']}" for n, p in held["phases"].items() if p["outcome"] != "passed"]
    lines += ["", f"Phases that did not pass: {', '.join(bad)}." if bad else "All phases passed."]
    left = held["phases"]["time"]["found"].get("left", [])
    if left:
        names = ", ".join(" ".join(str(case[p]) for p in _CASE if p in case) for case in left)
        lines.append(f"Not timed, for time ran out: {names}.")
    return "\n".join(lines)


def line(held: dict[str, Any]) -> str:
    """The plain step of GPT-2 small in one sentence; empty where it was not timed."""
    case = _case(held, "AdamW", "GPT-2 small", "float32", "step")
    ours, best = case.get(OURS.name), _best(case)
    if ours is None or best is None:
        return ""
    played = f"{PLAYED}: " if held["played"] else ""
    return (
        f"{played}On {_what(held)}: AdamW on GPT-2 small, float32, {_ms(ours)} ms per step; the "
        f"fastest other, {best['contender']}, {_ms(best)} ms."
    )


def aims(held: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What we set out to reach, what was seen, and whether that is it."""
    found = []
    rows = _rows(held)
    compared = [row for row in rows if row["program"] != _STORAGES]
    cases = dict.fromkeys(tuple(row[part] for part in _CASE) for row in compared)
    for kind, model, dtype, program in cases:
        case = _case(held, kind, model, dtype, program)
        ours, best = case.get(OURS.name), _best(case)
        if ours is None:
            continue
        name = f"{kind}, {PROGRAMS[program].title}, {dtype}, {model}"
        if best is not None:
            wanted = 1.0 if program == "step" else 1.4
            times = best["median_ms"] / ours["median_ms"]
            seen = f"{times:.2f} ({best['contender']})"
            what = f"{name}, times as fast as the fastest other: at least {wanted:g}"
            found.append((what, seen, times >= wanted))
        share = ours["of_copy_bandwidth"]
        if share is not None and ours["parameters"] >= 100_000_000:
            what = f"{name}, part of a copy's bandwidth: at least 0.9"
            found.append((what, f"{share:.2f}", share >= 0.9))
    return found


def _titled(program: str) -> str:
    return PROGRAMS[program].title + ("" if program in ("step", _STORAGES) else f" (k = {K})")


def _stored(title: str, rows: list[Row], label: str) -> list[str]:
    """A line for each way to store a model; none where there are no rows."""
    if not rows:
        return []
    lines = ["", f"| {label}{title}, {rows[0]['model']} | ms | bytes per parameter | of a copy |"]
    lines.append("| --- | --- | --- | --- |")
    fastest = min(row["median_ms"] for row in rows)
    for row in rows:
        held, share = row["bytes"] / row["parameters"], row["of_copy_bandwidth"]
        lines.append(f"| {row['contender']} | {_cell(row, fastest)} | {held:.3g} | {share:.0%} |")
    return lines


def _table(by: str, title: str, rows: list[Row], label: str) -> list[str]:
    """A line for each that `by` tells apart; none where there are no rows."""
    if not rows:
        return []
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = ["", f"| {label}{title} | " + " | ".join(names)
             + " | ours, of a copy |", "| --- |" + " --- |" * (len(names) + 1)]  # fmt: skip
    for one in dict.fromkeys(row[by] for row in rows):
        case = {row["contender"]: row for row in rows if row[by] == one}
        fastest = min(row["median_ms"] for row in case.values())
        cells = [_cell(case.get(name), fastest) for name in names]
        share = case.get(OURS.name, {}).get("of_copy_bandwidth")
        lines.append(f"| {one} | {' | '.join(cells)} | {'' if share is None else f'{share:.0%}'} |")
    return lines


def _cell(row: Row | None, fastest: float) -> str:
    if row is None:
        return ""
    text = f"**{_ms(row)}**" if row["median_ms"] == fastest else _ms(row)
    ours = row["contender"].startswith(OURS.name) and "graph" not in row["contender"]
    return f"{text} [{row['host_median_ms']:.2f}]" if ours else text


def _ms(row: Row) -> str:
    ms = row["median_ms"]
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 0.1 else f"{ms:.3f}"


def _rows(held: dict[str, Any]) -> list[Row]:
    rows: list[Row] = held["phases"]["time"]["found"]["rows"]
    return rows


def _case(held: dict[str, Any], *wanted: str) -> dict[str, Row]:
    """Who was timed there: with an optimizer, on a model, in a dtype, in a program."""
    rows = [r for r in _rows(held) if tuple(r[part] for part in _CASE) == wanted]
    return {row["contender"]: row for row in rows}


def _best(case: dict[str, Row]) -> Row | None:
    """The fastest that is not ours and was called from Python, as ours is."""
    others = [
        row
        for name, row in case.items()
        if not name.startswith(OURS.name) and not name.endswith(", graph")
    ]
    return min(others, key=lambda row: row["median_ms"], default=None)


def name(held: dict[str, Any]) -> str:
    """Of the GPU."""
    facts = held["phases"]["time"]["found"].get("facts", {})
    return str(facts.get("name", "unknown GPU"))


def _what(held: dict[str, Any]) -> str:
    """Device, versions and date."""
    versions = held["versions"]
    known = (
        f"torch {versions['torch']}, Triton {versions['triton']}, {versions['spectramind_fused']}"
    )
    return f"{name(held)}; {known}; {held['date'][:10]}"
