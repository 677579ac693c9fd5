"""The ablations of the paper (Tables 3 and 4) at a budget of one's own: every row trained, scored, and tabled.

A study is a folder: a run for every row (``streamdeblur.training.trainer``), beside it NAME.json with its result, and
the tables as ablation.json, ablation.csv and ablation.md. Started again, it goes on where it was, row by row. Rows that
the folder already has stay in its tables whatever is trained next; where steps differ, or the ways to them, the tables
say so.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from streamdeblur import interrupts
from streamdeblur.config import load_yaml
from streamdeblur.errors import ConfigError, InputError, OutputError, UsageError
from streamdeblur.models.checkpoint import load_checkpoint
from streamdeblur.models.mimo_unet import MIMOUNetConfig, parameter_shapes
from streamdeblur.training.config import apply_changes, parse
from streamdeblur.training.feeds import open_validation
from streamdeblur.training.networks import architecture
from streamdeblur.training.outcome import Observer
from streamdeblur.training.recipe import Recipe
from streamdeblur.training.run import run_training
from streamdeblur.training.state import has_state
from streamdeblur.training.validation import Scores, score_weights

log = logging.getLogger(__name__)

Table = Literal[3, 4]


@dataclass(frozen=True)
class Row:
    """A row of the paper. psnr: dB on GoPro; millions: parameters, None where the paper names none."""

    name: str
    tables: tuple[Table, ...]
    mise: bool = False
    mosd: bool = False
    aff: bool = False
    msfr: bool = False
    fusion: Literal["fam", "concat", "sum"] = "fam"
    psnr: float = 0.0
    millions: float | None = None

    @property
    def switches(self) -> dict[str, Any]:
        """Of ``MIMOUNetConfig``."""
        return {"mise": self.mise, "mosd": self.mosd, "aff": self.aff, "fusion": self.fusion}


_FULL = Row("full", (3, 4), mise=True, mosd=True, aff=True, msfr=True, psnr=31.73, millions=6.81)

#: In the order of the paper. The last row of Table 4 is that of FAM in Table 3.
ROWS = (
    Row("plain", (4,), psnr=31.16, millions=6.46),
    Row("mise", (4,), mise=True, psnr=31.17, millions=6.72),
    Row("mosd", (4,), mosd=True, psnr=31.33, millions=6.47),
    Row("aff", (4,), aff=True, psnr=31.33, millions=6.54),
    Row("mise-mosd", (4,), mise=True, mosd=True, psnr=31.38, millions=6.73),
    Row("mosd-aff", (4,), mosd=True, aff=True, psnr=31.38, millions=6.54),
    Row("mise-aff", (4,), mise=True, aff=True, psnr=31.39, millions=6.80),
    Row("mise-mosd-aff", (4,), mise=True, mosd=True, aff=True, psnr=31.46, millions=6.81),
    _FULL,
    dataclasses.replace(_FULL, name="concat", tables=(3,), fusion="concat", psnr=31.66, millions=None),
    dataclasses.replace(_FULL, name="sum", tables=(3,), fusion="sum", psnr=31.60, millions=None),
)


@dataclass(frozen=True)
class Study:
    """What to train. recipe: of every row, but for its switches; minutes: at most so many a row, 0 for no limit.

    tables: the one that was asked for, empty for both.
    """

    recipe: Recipe
    rows: tuple[Row, ...] = ROWS
    minutes: float = 0.0
    tables: tuple[Table, ...] = ()

    def recipe_of(self, row: Row) -> Recipe:
        """The recipe of one row."""
        loss = self.recipe.loss if row.msfr else dataclasses.replace(self.recipe.loss, msfr_weight=0.0)
        return dataclasses.replace(self.recipe, architecture={**self.recipe.architecture, **row.switches}, loss=loss)


@dataclass(frozen=True)
class RowResult:
    """A trained row. psnr: mean over the validation sets (dB, 8 bit), of the averaged weights of the last step.

    gain: over the blurred input. parameters: of the network as trained. steps: that it was trained for, all calls
    together. seconds: of training. minutes: the limit that it had, 0 for none. schedules: lengths (steps or epochs) of
    the schedule of the learning rate that it went through, one after another; more than one where it was extended.
    """

    row: Row
    psnr: float
    gain: float
    sets: Mapping[str, float]
    parameters: int
    steps: int
    seconds: float
    minutes: float = 0.0
    schedules: tuple[int, ...] = ()

    def same_budget(self, other: RowResult) -> bool:
        """The same steps, or the same minutes, in which steps differ by design."""
        return self.steps == other.steps or 0 < self.minutes == other.minutes

    def comparable(self, other: RowResult) -> bool:
        """Whether both had one budget and went through it alike: extending a row warms it up again."""
        return self.same_budget(other) and self.schedules == other.schedules


@dataclass(frozen=True)
class Results:
    """Of the rows done so far, in this call or before. stopped: the signal that ended the study early, else "".

    asked: the table that was asked for, empty for both.
    """

    rows: tuple[RowResult, ...]
    stopped: str
    asked: tuple[Table, ...] = ()

    @property
    def exit_code(self) -> int:
        """Of the process that ran it: 0, or 128 and the number of the signal that stopped it."""
        return 128 + int(signal.Signals[self.stopped]) if self.stopped else 0

    def of(self, table: Table) -> list[dict[str, Any]]:
        """The rows of a table, plain. ``against``: dB to the table's full network, ours and the paper's.

        Ours is None beside a full network of another budget, or extended otherwise: training would pass for a better
        network.
        """
        rows = [r for r in self.rows if table in r.row.tables]
        full = next((r for r in rows if r.row.name == "full"), None)
        return [
            {
                "row": r.row.name,
                "table": table,
                **r.row.switches,
                "msfr": r.row.msfr,
                "psnr": round(r.psnr, 4),
                "against": None if full is None or not r.comparable(full) else round(r.psnr - full.psnr, 4),
                "gain": round(r.gain, 4),
                "parameters": r.parameters,
                "steps": r.steps,
                "seconds": round(r.seconds, 1),
                "paper_psnr": r.row.psnr,
                "paper_against": round(r.row.psnr - _FULL.psnr, 2),
                "paper_parameters": None if r.row.millions is None else round(r.row.millions * 1e6),
                "sets": {k: round(v, 4) for k, v in r.sets.items()},
            }
            for r in rows
        ]

    @property
    def tables(self) -> dict[Table, list[dict[str, Any]]]:
        """Those asked for, and those with a row of their own: the full network, which is in both, makes none alone."""
        numbers: tuple[Table, ...] = (3, 4)
        own = [n for n in numbers if n in self.asked or any(r.row.tables == (n,) for r in self.rows)]
        return {n: rows for n in own or numbers if (rows := self.of(n))}

    @property
    def shown(self) -> dict[Table, list[dict[str, Any]]]:
        """Of ``tables``, those asked for."""
        return {n: rows for n, rows in self.tables.items() if not self.asked or n in self.asked}

    @property
    def warning(self) -> str:
        """One line where rows of a table had different budgets, or were extended otherwise, else ""."""
        beside = [(a, b) for a in self.rows for b in self.rows if set(a.row.tables) & set(b.row.tables)]
        if all(a.comparable(b) for a, b in beside):
            return ""
        if all(a.same_budget(b) for a, b in beside):
            by_schedules: dict[tuple[int, ...], list[str]] = {}
            for r in self.rows:
                by_schedules.setdefault(r.schedules, []).append(r.row.name)
            ways = "; ".join(
                f"{', '.join(names)}: {', then '.join(map(str, lengths))}"
                for lengths, names in sorted(by_schedules.items())
            )
            return (
                f"rows went through different schedules ({ways}) and don't compare; train all for the same --steps in "
                "a new folder"
            )
        by_steps: dict[int, list[str]] = {}
        for r in self.rows:
            by_steps.setdefault(r.steps, []).append(r.row.name)
        groups = "; ".join(f"{', '.join(names)}: {steps}" for steps, names in sorted(by_steps.items()))
        return f"rows were trained for different steps ({groups}) and don't compare; train all for the same --steps"


def load_study(
    path: str | os.PathLike[str],
    changes: Sequence[str] = (),
    *,
    tables: Sequence[int] = (),
    rows: Sequence[str] = (),
    minutes: float | None = None,
) -> Study:
    """A study from YAML: the keys of a recipe, and ``ablation: {tables, rows, minutes}``, over which arguments win.

    Raises ConfigError for a file or a value that is wrong, UsageError for a row that is none.
    """
    values = load_yaml(path)
    apply_changes(values, changes)
    where = f"{os.fspath(path)}{' and the command line' if changes else ''}"
    own = values.pop("ablation", None) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"ablation {own!r} in {where} holds no keys")
    unknown = sorted(own.keys() - {"tables", "rows", "minutes"})
    if unknown:
        raise ConfigError(f"unknown key 'ablation.{unknown[0]}' in {where}", "known are tables, rows, minutes")
    recipe = parse(Recipe, values, where)
    for key in ("mise", "mosd", "aff", "fusion"):
        if key in recipe.architecture:
            raise ConfigError(f"architecture.{key} in {where} is what the rows differ in", "leave it out")
    if not recipe.loss.msfr_weight:
        raise ConfigError(f"loss.msfr_weight 0 in {where}", "give the weight that rows with MSFR have")
    if not recipe.validation.sets:
        raise ConfigError(f"validation.sets in {where} is empty", "name the pairs that score the rows")
    limit = own.get("minutes", 0) if minutes is None else minutes
    if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not 0 <= limit < math.inf:
        raise ConfigError(f"ablation.minutes {limit!r} in {where} is no number of at least 0")
    architecture(recipe)  # refuse one that can't be built now
    asked = tables or own.get("tables") or ()
    chosen = _choose(asked, rows or own.get("rows") or (), where)
    only: tuple[Table, ...] = (3,) if set(asked) == {3} else (4,) if set(asked) == {4} else ()
    return Study(recipe, chosen, float(limit), only)


def _choose(tables: Any, names: Any, where: str) -> tuple[Row, ...]:
    for key, value in (("tables", tables), ("rows", names)):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"ablation.{key} {value!r} in {where} is not a list")
    for number in tables:
        if number not in (3, 4):
            raise UsageError(f"table {number!r} has no ablations", "take 3 or 4")
    known = [r.name for r in ROWS]
    for name in names:
        if name not in known:
            raise UsageError(f"row {name!r} is unknown", f"known are {', '.join(known)}")
    chosen = tuple(r for r in ROWS if (not tables or set(r.tables) & set(tables)) and (not names or r.name in names))
    if not chosen:
        raise UsageError(f"none of the rows {', '.join(map(str, names))} is in table {', '.join(map(str, tables))}")
    return chosen


def run_study(
    study: Study,
    folder: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    observers: Sequence[Observer] = (),
    begin: Callable[[Row, int, int], None] | None = None,
) -> Results:
    """Train what is not done yet, and write the tables after every row. SIGTERM and SIGINT save the row and stop.

    The tables, and what is returned, also have the rows that earlier calls left in ``folder``, whatever their steps; a
    warning names what does not compare. begin: told before every row that is trained: the row, its number from 1, how
    many there are. Raises UsageError for a run of another recipe, InputError for a result that can't be read,
    OutputError, and what training raises.
    """
    found, left_out = _earlier(folder, study)
    stopped = ""
    for number, row in enumerate(study.rows, start=1):
        recipe = study.recipe_of(row)
        kept = _kept(folder, row)
        result = _finished(kept, row, recipe, study.minutes)
        if result is None:
            _refuse_other(kept, folder / row.name, row, recipe)
            if begin is not None:
                begin(row, number, len(study.rows))
            found.pop(row.name, None)  # its file says "under way" from here on
            spent = float(kept.get("seconds", 0.0)) if kept else 0.0
            left = max(1e-6, study.minutes - spent / 60) if study.minutes else None
            schedules = _schedules(kept, folder / row.name, recipe)
            asked = {"recipe": json.loads(recipe.to_json()), "minutes": study.minutes, "schedules": schedules}
            _keep(folder, row, {**asked, "seconds": spent})
            outcome = run_training(
                recipe,
                folder / row.name,
                device=device,
                threads=threads,
                max_minutes=left,
                tensorboard=False,
                observers=observers,
            )
            spent += outcome.seconds
            if outcome.stopped.startswith("SIG"):
                stopped = outcome.stopped
                _keep(folder, row, {**asked, "seconds": spent})
                break
            scores = outcome.scores if outcome.finished else None
            scores = scores or _score(recipe, folder / row.name, device)
            result = RowResult(
                row=row,
                psnr=scores.score,
                gain=sum(s.gain for s in scores.sets) / len(scores.sets),
                sets={s.name: s.restored for s in scores.sets},
                parameters=_count(architecture(recipe)),
                steps=outcome.step,
                seconds=spent,
                minutes=study.minutes,
                schedules=schedules,
            )
            values = {k: v for k, v in dataclasses.asdict(result).items() if k != "row"}
            _keep(folder, row, {**values, **asked})
        found[row.name] = result
        left_out.pop(row.name, None)
        write_tables(_results(found, stopped, study), folder)
    results = _results(found, stopped, study)
    if results.warning:
        log.warning("%s", results.warning)
    if left_out:
        rows = ", ".join(f"{name} (another {', '.join(keys)})" for name, keys in left_out.items())
        log.warning("rows of another recipe in %s are not in the tables: %s; train them again elsewhere", folder, rows)
    return results


def _results(found: Mapping[str, RowResult], stopped: str, study: Study) -> Results:
    return Results(tuple(found[r.name] for r in ROWS if r.name in found), stopped, study.tables)


def _earlier(folder: Path, study: Study) -> tuple[dict[str, RowResult], dict[str, list[str]]]:
    """By name: what earlier calls finished in ``folder``, and the rows of another recipe with what differs in it."""
    found: dict[str, RowResult] = {}
    left_out: dict[str, list[str]] = {}
    for row in ROWS:
        kept = _kept(folder, row)
        if not kept or "psnr" not in kept:  # not begun, or under way
            continue
        before, now = kept.get("recipe"), json.loads(study.recipe_of(row).to_json())
        if not isinstance(before, dict):
            left_out[row.name] = ["recipe"]
            continue
        other = _differing(before, now, ("steps", "log_every", "state", "validation"))
        # Pictures that score a row are part of what it is, how often they do is not.
        if not other and _differing(before.get("validation"), {"sets": now["validation"]["sets"]}):
            other = ["validation.sets"]
        if other:
            left_out[row.name] = other
        else:
            found[row.name] = _result(kept, row)
    return found, left_out


def _differing(before: Any, now: Mapping[str, Any], free: Sequence[str] = ()) -> list[str]:
    """Keys of a recipe, but for those in ``free``, that another has otherwise."""
    if not isinstance(before, dict):
        return ["recipe"]
    return [key for key in now if key not in free and before.get(key) != now[key]]


def _result(kept: Mapping[str, Any], row: Row) -> RowResult:
    values = {f.name: kept[f.name] for f in dataclasses.fields(RowResult) if f.name in kept}
    return RowResult(row, **{**values, "schedules": _went_through(kept)})


def _schedules(kept: Mapping[str, Any] | None, run: Path, recipe: Recipe) -> tuple[int, ...]:
    """``RowResult.schedules`` of a row once it is trained by ``recipe``: on top of those of the state that is there."""
    before = _went_through(kept or {}) if has_state(run / "last") else ()
    length = _length(json.loads(recipe.to_json()))
    done = bool(recipe.steps) and (kept or {}).get("steps", 0) >= recipe.steps  # then nothing is trained
    return before if before and (done or before[-1] == length) else (*before, length)


def _went_through(kept: Mapping[str, Any]) -> tuple[int, ...]:
    if "schedules" in kept:
        return tuple(kept["schedules"])
    recipe = kept.get("recipe")  # it was written before they were
    return (_length(recipe),) if isinstance(recipe, dict) else ()


def _length(recipe: Mapping[str, Any]) -> int:
    """That the learning rate depends on, in steps or epochs; 0 where it does not."""
    schedule = recipe["schedule"]
    if schedule["kind"] in ("constant", "step"):
        return 0
    return int(schedule["total"] or recipe["epochs"] or recipe["steps"])


def _count(config: MIMOUNetConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _score(recipe: Recipe, folder: Path, device: str) -> Scores:
    """Of the weights that a run stopped with, which may never have been validated."""
    weights, metadata = load_checkpoint(folder / "last.safetensors")
    sets = open_validation(recipe.validation.sets)
    return score_weights(weights, metadata.config, sets, device=device, precision=recipe.precision, sharp=False)


def _kept(folder: Path, row: Row) -> dict[str, Any] | None:
    path = folder / f"{row.name}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise InputError(f"the result {path} can't be read: {e}", "remove it, and the row is scored again") from e
    if not isinstance(values, dict):
        return None
    # What is no recipe that this version knows differs from any.
    with contextlib.suppress(UsageError, AttributeError, KeyError, TypeError, ValueError):
        # Keys that came after it was written had their defaults.
        values["recipe"] = json.loads(Recipe.from_json(json.dumps(values["recipe"])).to_json())
    return values


def _finished(kept: dict[str, Any] | None, row: Row, recipe: Recipe, minutes: float) -> RowResult | None:
    """The result of an earlier call, if it was of the same recipe and budget."""
    if (
        not kept
        or "psnr" not in kept
        or kept.get("recipe") != json.loads(recipe.to_json())
        or kept.get("minutes") != minutes
    ):
        return None
    return _result(kept, row)


def _refuse_other(kept: dict[str, Any] | None, run: Path, row: Row, recipe: Recipe) -> None:
    """A run of another recipe would give its result for this one's; more steps or minutes only go on with it."""
    before = (kept or {}).get("recipe")
    if not isinstance(before, dict) or not run.exists():
        return
    other = _differing(before, json.loads(recipe.to_json()), ("steps", "log_every", "state", "validation"))
    if other:
        raise UsageError(
            f"{run} holds row {row.name} of a recipe with another {', '.join(other)}",
            "choose another folder, or remove that one",
        )


def _keep(folder: Path, row: Row, values: dict[str, Any]) -> None:
    _write(folder / f"{row.name}.json", json.dumps(values, indent=1))


@interrupts.held()
def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OutputError(f"can't write {path}: {e.strerror or e}") from e


# --- tables --------------------------------------------------------------------------------------------------------

HEADS = {
    3: ("fusion", "PSNR", "to FAM", "parameters", "paper: PSNR", "to FAM"),
    4: ("MISE", "MOSD", "AFF", "MSFR", "PSNR", "to the last", "parameters", "paper: PSNR", "to the last", "parameters"),
}


def lines(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A table of ``Results.of`` as text: its head, then its rows. Where steps differ, a column says how many."""
    text = [list(HEADS[table]), *(_cells(table, row) for row in rows)]
    if len({row["steps"] for row in rows}) > 1:
        at = HEADS[table].index("parameters") + 1  # the last of ours, before the paper's
        for line, cell in zip(text, ["steps", *(f"{row['steps']:,}" for row in rows)], strict=True):
            line.insert(at, cell)
    return text


def _cells(table: Table, row: Mapping[str, Any]) -> list[str]:

    def against(value: float | None) -> str:
        return "" if value is None else f"{value:+.2f}"

    def millions(value: int | None) -> str:
        return "" if value is None else f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,}"

    mine = [f"{row['psnr']:.2f}", against(row["against"]), millions(row["parameters"])]
    paper = [f"{row['paper_psnr']:.2f}", against(row["paper_against"])]
    if table == 3:
        return [{"fam": "FAM", "concat": "concatenation", "sum": "sum"}[row["fusion"]], *mine, *paper]
    marks = ["✓" if row[key] else "" for key in ("mise", "mosd", "aff", "msfr")]
    return [*marks, *mine, *paper, millions(row["paper_parameters"])]


def write_tables(results: Results, folder: Path) -> None:
    """ablation.json, ablation.csv (a line a row and table) and ablation.md in ``folder``."""
    tables = results.tables
    _write(folder / "ablation.json", json.dumps({f"table_{n}": rows for n, rows in tables.items()}, indent=1))
    flat = [{k: v for k, v in row.items() if k != "sets"} for rows in tables.values() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    _write(folder / "ablation.csv", text.getvalue())
    parts = []
    for number, rows in tables.items():
        head, *text_rows = lines(number, rows)
        ruled = [head, ["---"] * len(head), *text_rows]
        parts.append(f"## Table {number}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in ruled))
    if results.warning:
        parts.append(f"Note: {results.warning}.")
    _write(folder / "ablation.md", "\n\n".join(parts) + "\n")
