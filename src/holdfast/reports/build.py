"""Build the report: facts, words and figures put into the template, with a machine-readable twin.

The page is self-contained and forbids itself any request (Content-Security-Policy); everything
that came from a model, a data file or a command line is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from holdfast.charts import embedding
from holdfast.charts.figures import Figure
from holdfast.contracts import Section, SectionTable
from holdfast.examples import PROVENANCE
from holdfast.reports import figures
from holdfast.reports.catalogue import Code
from holdfast.reports.facts import BASELINE, Attacked, Facts, LineComparison, Under, compare, gather
from holdfast.reports.verdict import cards, verdict
from holdfast.reports.words import Words, attack_of
from holdfast.results.environment import versions
from holdfast.results.files import SCHEMA, write_json, write_text
from holdfast.results.left_out import left_out_counts
from holdfast.results.run_dir import Entry, RunDir
from holdfast.results.sources import Sources

_SHOWN = 6
_LIMITS = ("attacks", "intervals", "seeds", "judge", "refusal", "use")
_TERMS = ("hs", "fa", "or", "hl", "pr", "fn", "vg")


def build(
    run: RunDir,
    sections: Sequence[Section],
    *,
    title: str,
    language: Code = "en",
    show_harmful: bool = False,
) -> str:
    """Return the report as one HTML document.

    Args:
        run: The run directory; whatever it lacks is named in the report.
        sections: Chapters of the analyses, shown in this order.
        title: Heading of the report; a question in its language if empty.
        language: Language of the fixed text.
        show_harmful: Show examples of answers, some of which may be harmful to read.

    Raises:
        UsageError: The run's manifest is broken.
    """
    facts = gather(run)
    words = Words(language)
    return _render(run, facts, sections, title or words.text["title"], words, show_harmful)


def write(
    run: RunDir,
    sections: Sequence[Section],
    *,
    title: str,
    language: Code = "en",
    show_harmful: bool = False,
) -> Path:
    """Write report.html, and report.json with the same facts; see `build`.

    Returns:
        The path of report.html.
    """
    facts = gather(run)
    words = Words(language)
    title = title or words.text["title"]
    page = _render(run, facts, sections, title, words, show_harmful)
    write_json(run.path("report.json"), _machine(run, facts, sections, title, words))
    write_text(run.path("report.html"), page)
    return run.path("report.html")


def _render(
    run: RunDir,
    facts: Facts,
    sections: Sequence[Section],
    title: str,
    words: Words,
    show_harmful: bool,
) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = resources.files("holdfast.reports")
    template = environment.from_string(here.joinpath("template.html.j2").read_text("utf-8"))
    gallery = _Gallery()
    attacks = [_attack(attack, facts, words, gallery) for attack in facts.attacks]
    price = figures.price(facts, figures.colours(facts))
    shown_price = gallery.add(price) if price else None
    chapters = [_section(s, i, words, gallery) for i, s in enumerate(sections)]
    embedded = embedding.embed(gallery.figures, words.language)
    return template.render(
        title=title,
        language=words.code,
        t=words.text,
        words=words,
        facts=facts,
        baseline=BASELINE,
        style=Markup(here.joinpath("style.css").read_text("utf-8")),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        digest=run.digest,
        script=Markup(embedded.script),
        script_hash=embedding.hash_of(embedded.script) if embedded.script else "'none'",
        figure_data=Markup(embedded.data),
        stills=embedded.stills,
        summary=[words.said(sentence) for sentence in verdict(facts)],
        cards=cards(facts),
        attacks=attacks,
        price=shown_price,
        pair=lambda attack, line: _pair_ratio(facts, attack, line),
        sections=chapters,
        examples=list(_examples(run, facts)) if show_harmful else [],
        has_examples=any(True for _ in _records(run, facts)),
        show_harmful=show_harmful,
        limits=[words.say(f"limit_{k}", seeds=_seeds(facts)) for k in _LIMITS if _says(k, facts)],
        terms=[(words.text[f"term_{k}"], words.text[f"term_{k}_text"]) for k in _TERMS],
        provenance=_provenance(facts, words),
        left_out=_left_out(facts, words),
        provenance_columns=PROVENANCE,
        versions=_versions(facts),
        hardware=_hardware(facts),
        precisions=_precisions(facts),
        models=_models(run),
        seeds=_seeds(facts),
        command=lambda stage, *more: " ".join(["holdfast", stage, "--out", str(run.root), *more]),
        pretty=lambda value: json.dumps(value, ensure_ascii=False, indent=1),
        holdfast=versions().get("holdfast", words.text["unknown"]),
    )


def _in_order(attack: Attacked, facts: Facts) -> list[Under]:
    return sorted(attack.methods, key=lambda under: facts.lines.index(under.line))


def _machine(
    run: RunDir, facts: Facts, sections: Sequence[Section], title: str, words: Words
) -> dict[str, Any]:
    return {
        "kind": "report",
        "schema": SCHEMA,
        "title": title,
        "language": words.code,
        "digest": run.digest,
        "summary": [words.said(sentence) for sentence in verdict(facts)],
        "best": facts.best,
        "methods": [asdict(s) for s in facts.standings],
        "attacks": [
            {
                "settings": a.attack,
                "judge": a.judge,
                "methods": [
                    {
                        "line": m.line,
                        "seeds": len(m.results),
                        "end_steps": m.end_steps,
                        "harmful_score": asdict(m.end),
                        "verdicts": asdict(m.verdicts),
                        "half_life": asdict(m.life),
                        "refusal_half_life": asdict(m.refusal_life),
                        "accuracy": asdict(m.accuracy),
                        "curve": m.curve(),
                    }
                    for m in a.methods
                ],
            }
            for a in facts.attacks
        ],
        "against_sft": {line: asdict(c) for line, c in facts.comparisons.items()},
        "refusing_against_sft": {line: asdict(c) for line, c in facts.refusing.items()},
        "models": _models(run),
        "precisions": _precisions(facts),
        "missing": facts.missing,
        "problems": facts.problems,
        "failed": [asdict(one) for one in facts.failed],
        "left_out": left_out_counts(facts.entries),
        "provenance": {step: found for step, found in _provenance_facts(facts)},
        "sections": [
            {
                "title": words.said(s.title),
                "findings": [words.said(finding) for finding in s.findings],
                "tables": {words.said(c): _plain(table, words) for c, table in s.tables.items()},
                "figures": [words.said(caption) for caption in s.figures],
                "note": words.said(s.note),
            }
            for s in sections
        ],
        "steps": [asdict(entry) for entry in facts.entries],
    }


@dataclass
class _Gallery:
    """The figures of a page by element id."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, figure: Figure) -> str:
        """Add a figure; return its element id, by which the template shows it."""
        name = f"figure-{len(self.figures) + 1}"
        self.figures[name] = figure
        return name


def _attack(attack: Attacked, facts: Facts, words: Words, gallery: _Gallery) -> dict[str, Any]:
    colour = figures.colours(facts)
    label = attack_of(attack, facts.attacks)
    return {
        "label": words.said(label),
        "judge": attack.judge,
        "methods": _in_order(attack, facts),
        "curves": gallery.add(figures.curves(attack, colour, label)),
        "lives": gallery.add(figures.half_lives(attack, colour, label)),
    }


def _section(section: Section, number: int, words: Words, gallery: _Gallery) -> dict[str, Any]:
    return {
        "id": f"analysis-{number + 1}",
        "title": words.said(section.title),
        "findings": [words.said(finding) for finding in section.findings],
        "tables": [(words.said(c), _table(table, words)) for c, table in section.tables.items()],
        "figures": [(words.said(c), gallery.add(f)) for c, f in section.figures.items()],
        "note": words.said(section.note),
    }


def _table(table: SectionTable, words: Words) -> dict[str, list[Any]]:
    places = range(len(table.columns))
    return {
        "columns": [words.said(head) for head in table.columns],
        "rows": [[words.cell(cell) for cell in row] for row in table.rows],
        "numeric": [any(not isinstance(row[i], str) for row in table.rows) for i in places],
    }


def _plain(table: SectionTable, words: Words) -> dict[str, list[Any]]:
    """Return a table for programs: numbers as they are, unknown ones as null."""
    return {
        "columns": [words.said(head) for head in table.columns],
        "rows": [[_value(cell, words) for cell in row] for row in table.rows],
    }


def _value(cell: str | int | float, words: Words) -> str | int | float | None:
    if isinstance(cell, str):
        return words.said(cell)
    return cell if math.isfinite(cell) else None


def _records(run: RunDir, facts: Facts) -> Iterator[tuple[Entry, Path]]:
    for entry in facts.entries:
        if entry.stage == "evaluate":
            for relative in entry.outputs:
                path = run.path(relative)
                if path.suffix == ".jsonl" and path.is_file():
                    yield entry, path


def _examples(run: RunDir, facts: Facts) -> Iterator[dict[str, Any]]:
    """Yield a few answers of each evaluated model: those that a judge calls harmful come first."""
    for entry, path in _records(run, facts):
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("verdicts"), dict):
                rows.append(row)
        rows.sort(key=lambda row: not _harmful(row))
        for row in rows[:_SHOWN]:
            yield {
                "model": entry.name,
                "prompt": row.get("prompt", ""),
                "response": row.get("response", ""),
                "verdicts": {
                    judge: v.get("reason") or v.get("harmful") if isinstance(v, dict) else v
                    for judge, v in row["verdicts"].items()
                },
            }


def _harmful(row: Mapping[str, Any]) -> bool:
    return any(isinstance(v, dict) and v.get("harmful") is True for v in row["verdicts"].values())


def _pair_ratio(facts: Facts, number: int, line: str) -> LineComparison:
    return compare([facts.attacks[number]], line, BASELINE)


def _provenance_facts(facts: Facts) -> Iterator[tuple[str, Mapping[str, Mapping[str, Any]]]]:
    """Yield (steps, column -> value -> rows), equal tables only once."""
    steps: dict[str, list[str]] = {}
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for entry in facts.entries:
        content = entry.facts.get("provenance")
        if isinstance(content, Mapping) and content:
            columns: Mapping[str, Mapping[str, Any]] = {
                str(k): v for k, v in content.items() if isinstance(v, Mapping)
            }
            key = json.dumps(columns, sort_keys=True, default=str)
            steps.setdefault(key, []).append(f"{entry.stage} {entry.name}")
            found[key] = columns
    for key, columns in found.items():
        yield ", ".join(steps[key]), columns


def _left_out(facts: Facts, words: Words) -> list[dict[str, str]]:
    """Return one line for each file and reason."""
    return [
        {
            "file": source,
            "reason": words.text.get(f"reason_{reason.replace(' ', '_')}", reason),
            "rows": words.count(number),
        }
        for source, counts in left_out_counts(facts.entries).items()
        for reason, number in counts.items()
    ]


def _provenance(facts: Facts, words: Words) -> list[dict[str, Any]]:
    tables = []
    for step, columns in _provenance_facts(facts):
        rows = []
        for column in dict.fromkeys([*PROVENANCE, *columns]):
            name = words.text.get(f"column_{column}", column)
            # A column that the data does not have is the most unknown of all: it gets its line.
            values = columns.get(column) or {"": math.nan}
            numbers = {k: v if isinstance(v, (int, float)) else math.nan for k, v in values.items()}
            total = sum(numbers.values())
            rows.append(
                {
                    "column": name,
                    "values": [
                        {
                            "value": words.text["value_unknown"]
                            if str(value).strip().lower() in ("", "unknown", "none", "nan")
                            else str(value),
                            "rows": words.count(n),
                            "share": words.percent(n / total if total else math.nan),
                        }
                        for value, n in sorted(numbers.items(), key=lambda item: -item[1])
                    ],
                }
            )
        tables.append({"step": step, "columns": rows})
    return tables


def _versions(facts: Facts) -> dict[str, str]:
    """Return package -> versions; more than one if steps were done with different ones."""
    found: dict[str, dict[str, None]] = {}
    for entry in facts.entries:
        for package, version in entry.versions.items():
            found.setdefault(package, {})[str(version)] = None
    return {package: ", ".join(seen) for package, seen in found.items()}


def _hardware(facts: Facts) -> list[str]:
    named = (
        str(e.facts[key]) for e in facts.entries for key in ("hardware", "device") if key in e.facts
    )
    return list(dict.fromkeys(named))


def _precisions(facts: Facts) -> list[str]:
    """Return the precisions in which models ran, with the stages of each if there are several."""
    stages: dict[str, dict[str, None]] = {}
    for entry in facts.entries:
        precision = entry.config.get("precision")
        if precision:
            stages.setdefault(str(precision), {})[entry.stage] = None
    if len(stages) < 2:
        return list(stages)
    return [f"{precision} ({', '.join(names)})" for precision, names in stages.items()]


def _models(run: RunDir) -> list[dict[str, str]]:
    """Return spec, hash and origin of each model that the run read, by the shortest spec."""
    found: dict[str, dict[str, str]] = {}
    for spec, contents in sorted(Sources(run).models().items(), key=lambda item: len(item[0])):
        made_from = contents.get("made_from", "")
        model = {"spec": spec, "hash": contents["hash"], "made_from": made_from}
        found.setdefault(contents["hash"], model)
    return list(found.values())


def _seeds(facts: Facts) -> int:
    counts = [len({r.model_seed for r in m.results}) for a in facts.attacks for m in a.methods]
    return max([*counts, *(s.seeds for s in facts.standings), 0])


def _says(limit: str, facts: Facts) -> bool:
    if limit == "seeds":
        return 0 < _seeds(facts) < 5
    if limit == "refusal":
        return any(math.isfinite(s.over_refusal.value) for s in facts.standings)
    return True
