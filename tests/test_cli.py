"""The command line: fields are options, errors are one message and a code, JSON stands alone."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import typer
from pydantic import Field

from holdfast import stages as stage_modules
from holdfast.cli import app, main, show
from holdfast.cli.options import command, options_of
from holdfast.contracts import Section
from holdfast.errors import HoldfastError
from holdfast.options import Flag, Options, describe
from holdfast.plugins import KINDS
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Groups, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.rows.readers import ReadOptions, read
from holdfast.stages import pipeline
from holdfast.stages.config import StageConfig
from holdfast.stages.report import ReportConfig
from holdfast.stages.table import STAGES, Stage
from made_lives import life


@dataclass
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Holdfast = Callable[..., Done]


@pytest.fixture
def holdfast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Holdfast:
    """Return a function that runs the command line as a shell would, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)

    def run(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["holdfast", *args])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Done(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace every stage's function by one that keeps its configuration and fails."""
    seen: dict[str, Any] = {}

    def replacement(name: str) -> Callable[[Any], None]:
        def stage(config: Any) -> None:
            seen[name] = config
            raise HoldfastError("far enough")

        return stage

    for name, stage in STAGES.items():
        monkeypatch.setattr(stage.function.replace(":", "."), replacement(name))
    return seen


NAMES = sorted(STAGES)


def flags(name: str) -> dict[str, Any]:
    """Return field -> the option that typer has made of it."""
    return {param.name: param for param in command(STAGES[name]).params}


# ------------------------------------------------------------------------------ fields are options


def test_every_stage_is_a_command() -> None:
    found = set()
    names = [info.name for info in walk_packages(stage_modules.__path__, "holdfast.stages.")]
    for module in [import_module(name) for name in names]:
        found |= {
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, StageConfig)
            and not value.__subclasses__()  # what several stages share is no stage
            and value.__module__.startswith("holdfast.stages.")
        }
    assert found == {stage.load()[0] for stage in STAGES.values()}, (
        "give it an entry in stages/table"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_an_option_or_has_a_reason(name: str) -> None:
    config, _ = STAGES[name].load()
    params = flags(name)
    without = STAGES[name].excluded
    assert all(len(reason.split()) >= 3 for reason in without.values())
    assert set(params) - {"as_json", "estimate"} == set(config.model_fields) - set(without)
    assert set(without) < set(config.model_fields)
    for field, info in config.model_fields.items():
        if field not in without:
            assert params[field].required == info.is_required(), field
    opts = [opt for param in params.values() for opt in param.opts]
    assert len(opts) == len(set(opts))


@pytest.mark.parametrize("name", NAMES)
def test_the_help_is_what_stands_under_the_field(name: str) -> None:
    """Every help is the string under its field, and of a spec, where to look the plug-ins up."""
    config, _ = STAGES[name].load()
    params = flags(name)
    sources = " ".join(
        " ".join(inspect.getsource(cls).split())
        for cls in config.__mro__
        if issubclass(cls, StageConfig)
    )
    for option in describe(config):
        if option.name in STAGES[name].excluded:
            continue
        assert len(option.help.split()) >= 2, option.name
        assert f'"""{option.help}' in sources, option.name
        pointer = f" List: `holdfast plugins {option.kind}`." if option.kind else ""
        assert params[option.name].help == option.help + pointer


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("score", {"estimators", "judges"}),
        ("attack", {"tasks", "judges", "poisons", "guards"}),
        ("adapt", {"tasks", "judges", "poisons"}),
        ("evaluate", {"tasks", "judges"}),
        ("analyze", {"analyses"}),
    ],
)
def test_the_help_says_where_plug_ins_are_listed(name: str, kinds: set[str]) -> None:
    words = " ".join(param.help or "" for param in flags(name).values())
    assert set(re.findall(r"List: `holdfast plugins (\w+)`", words)) == kinds


OPTIONS = {
    "score": "model data out estimator benign harmful judge name",
    "group": "data out scores rule quantile name",
    "align": "model data out method option benign harmful groups epochs lr batch-size max-length "
    "lora-rank name",
    "attack": "model task harmful test out judge poison-ratio lr steps every batch-size rows "
    "max-length lora-rank max-new-tokens track save-models",
    "evaluate": "model test out judge over-refusal task max-new-tokens",
    "analyze": "out analysis",
    "report": "out title language show-harmful",
}
"""Options that users have in their scripts: they must not vanish when a field is renamed."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_in_use_stay(name: str) -> None:
    rows = (
        []
        if name in ("analyze", "report")
        else ["columns", "strict", "max-left-out", "drop-invalid", "limit"]
    )
    wanted = {f"--{word}" for word in [*OPTIONS[name].split(), "seed", "device", "json", *rows]}
    assert wanted <= {opt for param in flags(name).values() for opt in param.opts}


class Every(StageConfig):
    """One field of every kind."""

    text: str
    """A text,
    on two lines.
    """
    share: float = Field(default=0.25, ge=0.0, le=1.0)
    """Between bounds."""
    rate: float = Field(default=1.0, gt=0)
    """Positive."""
    wanted: bool = True
    """On unless told otherwise."""
    kinds: Annotated[list[int], Flag("kind")] = Field(default=[1, 2])
    """Several."""
    properties: Annotated[list[str], Flag("property")] = Field(default_factory=list)
    """Several, of which one is a property."""
    choice: Literal["en", "ja"] = "en"
    """One of two."""
    maybe: list[str] | None = None
    """Perhaps several."""
    numbers: Annotated[dict[str, Any], Flag("number")] = Field(default_factory=dict)
    """Any values by name."""
    names: dict[str, str] = {"a": "b"}
    """Texts by name."""
    place: Path | None = None
    """Where."""


def every(config: Every) -> Every:
    return config


def dumped(config: Every) -> dict[str, Any]:
    return config.model_dump()


@pytest.fixture
def every_kind(holdfast: Holdfast, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return a runner of a stage of this file, whose entry in the table is all there is of it."""
    stage = Stage(
        name="analyze",
        summary="Do everything.",
        config=f"{__name__}:Every",
        function=f"{__name__}:every",
        example="every --text a --out b",
        presenter=f"{__name__}:dumped",
        excluded={"columns": "not asked for", "strict": "not asked for"},
    )
    monkeypatch.setitem(STAGES, "analyze", stage)
    return lambda *args: holdfast("analyze", "--text", "a", "--out", "b", "--json", *args)


def test_every_kind_of_field_is_handed_over(every_kind: Callable[..., Done]) -> None:
    untouched = Every(text="a", out=Path("b"))
    assert json.loads(every_kind().out) == untouched.model_dump(mode="json")
    given = "--share 0.5 --rate 2 --no-wanted --kind 7 --kind 8 --property x --choice ja --maybe y"
    given += " --number lr=1e-3 --number n=3 --number flag=true --number who=me --names c=d,e=f"
    given += " --place z --limit 4 --seed 5 --device cpu"
    assert json.loads(every_kind(*given.split()).out) == {
        **untouched.model_dump(mode="json"),
        **{"share": 0.5, "rate": 2.0, "wanted": False, "kinds": [7, 8], "properties": ["x"]},
        **{"choice": "ja", "maybe": ["y"], "place": "z", "names": {"c": "d", "e": "f"}},
        **{"numbers": {"lr": 0.001, "n": 3, "flag": True, "who": "me"}},
        **{"limit": 4, "seed": 5, "device": "cpu"},
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--share 1.5", "'--share'"),
        ("--share half", "'--share'"),
        ("--rate 0", "--rate=0.0 must be a number, above 0"),
        ("--kind one", "'--kind'"),
        ("--choice fr", "'--choice'"),
        ("--number lr", "--number 'lr' must be NAME=VALUE"),
        ("--number =3", "--number '=3' must be NAME=VALUE"),
        ("--number a=[", "--number '[': ']' is missing (character 2)"),
        ("--names a=b,c", "--names 'c' must be NAME=VALUE"),
        ("--limit 0", "'--limit'"),
        ("--columns a=b", "No such option: --columns"),
    ],
)
def test_a_wrong_value_is_named_by_its_option(
    every_kind: Callable[..., Done], given: str, said: str
) -> None:
    done = every_kind(*given.split())
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_help_shows_types_defaults_choices_bounds_and_an_example(
    every_kind: Callable[..., Done],
) -> None:
    done = every_kind("--help")
    assert done.code == 0

    def shown(flag: str) -> str:
        """Return what stands from a flag to the next one."""
        return done.out.partition(f" {flag} ")[2].partition(" --")[0]

    expected = {
        "--text": ("<str>", "A text, on two lines.", "[required]"),
        "--share": ("<float range>", "[0.0<=x<=1.0]", "Between bounds.", "[default: 0.25]"),
        "--kind": ("<list[int]>", "Several.", "[default: 1, 2]"),
        "--choice": ("<en|ja>", "One of two.", "[default: en]"),
        "--number": ("NAME=VALUE ", "Any values by name."),
        "--names": ("NAME=VALUE,...", "Texts by name."),
        "--place": ("<path>", "Where."),
    }
    for flag, parts in expected.items():
        for part in parts:
            assert part in shown(flag), flag
    assert "Example: holdfast every --text a --out b" in done.out
    assert "to give several values." in done.out


def test_required_options_come_first_and_common_ones_last() -> None:
    order = [option.name for option in options_of(Every)]
    assert order[:3] == ["text", "out", "share"]
    assert order[-8:-3] == ["seed", "device", "columns", "strict", "max_left_out"]
    assert order[-3:] == ["drop_invalid", "limit", "keep_harmful_rows"]


# ------------------------------------------------------------------------------------------- help


def test_a_class_describes_what_it_inherits() -> None:
    class Base(Options):
        """A base."""

        a: int = 1
        """The base's."""
        b: int = 2
        """The base's."""

    class Silent(Base):
        pass

    class Derived(Silent):
        """One of its own."""

        b: int = 3
        """Its own,
        on two lines.
        """

    found = {option.name: option.help for option in describe(Derived)}
    assert found == {"a": "The base's.", "b": "Its own, on two lines."}


def test_a_list_is_given_once_for_each_value_under_the_name_that_its_mark_says() -> None:
    params = flags("attack")
    assert params["models"].opts == ["--model"]
    assert params["learning_rates"].opts == ["--lr"]
    assert params["steps"].opts == ["--steps"]


# ------------------------------------------------------------------------------ the real commands


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_every_stage_is_accepted(
    name: str, holdfast: Holdfast, called: dict[str, Any]
) -> None:
    words = shlex.split(STAGES[name].example)
    assert words[0] == name
    done = holdfast(*words)
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("error far enough\n")  # a long stage says before what is to be done
    assert isinstance(called[name], StageConfig)
    assert f"Example: holdfast {STAGES[name].example}" in holdfast(name, "--help").out


def test_an_attack_takes_lists(holdfast: Holdfast, called: dict[str, Any]) -> None:
    common = "attack --model a --model b --task t --harmful h --test q --out o".split()
    holdfast(*common)
    config = called["attack"]
    assert (config.models, config.judges, config.seeds) == (["a", "b"], ["refusal"], [0])
    assert (config.poison_ratios, config.learning_rates) == ([0.1], [1e-4])
    more = "--judge x,y=1 --judge z --seed 3 --seed 4 --lr 1e-3 --poison-ratio 0 --save-models"
    holdfast(*common, *more.split())
    config = called["attack"]
    assert (config.judges, config.seeds, config.seed) == (["x,y=1", "z"], [3, 4], 0)
    assert (config.poison_ratios, config.learning_rates) == ([0.0], [1e-3])
    assert config.save_models


def test_a_method_takes_options_and_a_file_columns(
    holdfast: Holdfast, called: dict[str, Any]
) -> None:
    holdfast(
        *"align --model m --data d --out o --option rho=0.4 --option lr=1e-3".split(),
        *"--columns prompt=question,response=answer --lr 2e-5 --strict".split(),
    )
    config = called["align"]
    assert config.options == {"rho": 0.4, "lr": 0.001}
    assert config.columns == {"prompt": "question", "response": "answer"}
    assert (config.learning_rate, config.strict, config.limit) == (2e-5, True, None)


def test_an_unknown_option_names_the_nearest(holdfast: Holdfast) -> None:
    done = holdfast("score", "--modle", "x")
    assert done.code == 2
    assert "--model" in done.err
    done = holdfast("evalaute")
    assert done.code == 2
    assert "Did you mean 'evaluate'?" in done.err


def test_a_required_option_is_named(holdfast: Holdfast) -> None:
    done = holdfast("score", "--model", "m", "--out", "o")
    assert (done.code, done.out) == (2, "")
    assert "Missing option '--data'" in done.err


def test_interruption_is_said(holdfast: Holdfast, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.stages.report.report", pressed)
    done = holdfast("report", "--out", "o")
    assert done.code == 130
    assert "finished work is kept" in done.err


def test_a_full_disk_is_one_message(holdfast: Holdfast, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: Any) -> None:
        raise OSError(28, "No space left on device", "o/report.html")

    monkeypatch.setattr("holdfast.stages.report.report", full)
    done = holdfast("report", "--out", "o")
    assert done.code == 1
    assert done.err.startswith("error o/report.html: No space left on device; ")


def test_help_lists_every_command_and_imports_no_stage() -> None:
    code = (
        "import sys\nfrom holdfast.cli import main\nsys.argv = ['holdfast', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('pydantic', 'numpy', 'yaml', 'torch', 'holdfast.stages.config',"
        "'holdfast.results.artifacts')\n"
        "print(*[m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == ""
    for name in (
        *STAGES,
        "run",
        "demo",
        "demo-real",
        "verify",
        "train-judge",
        "import-model",
        "plugins",
        "power",
    ):
        assert f" {name} " in done.stdout
    shown = " ".join(done.stdout.replace("│", " ").split())
    for stage in STAGES.values():
        assert stage.summary in shown


def test_the_commands_are_those_of_the_table_and_the_special_ones() -> None:
    group: Any = typer.main.get_command(app)
    special = [
        *("run", "demo", "demo-real", "verify", "train-judge", "import-model"),
        *("plugins", "power"),
    ]
    assert list(group.commands) == [*STAGES, *special]


# ------------------------------------------------------------------------- from files, to the end


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run directory with scores 0..9 of ten rows, and the file of the rows."""
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"how {i}", "response": "no"}) for i in range(10)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = read(str(data), ReadOptions())
    run = RunDir(tmp_path / "run")
    path = run.path("scores", "mine.json")
    with run.job("score", "mine", config={}, inputs={}) as job:
        Scores(rows.ids, np.arange(10.0), "mine", rows.hash, "m").save(path)
        job.outputs.append(path)
    return run.root, data


def test_group_and_verify_tell_json_and_nothing_else(
    scored: tuple[Path, Path], holdfast: Holdfast
) -> None:
    out, data = map(str, scored)
    asked = ["group", "--data", data, "--out", out, "--rule", "quantile", "--quantile", "0.5"]
    done = holdfast(*asked, "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert len(done.out.splitlines()) == 1
    assert (told["invulnerable"], told["vulnerable"]) == (5, 5)
    table = holdfast(*asked)
    assert table.code == 0
    assert "│ vulnerable " in table.out
    checked = holdfast("verify", out, "--json")
    assert (checked.code, json.loads(checked.out)["changed"]) == (0, [])
    changed = Path(out) / "groups" / "mine.json"
    changed.write_text(changed.read_text() + " ")
    checked = holdfast("verify", out, "--json")
    assert (checked.code, len(json.loads(checked.out)["changed"])) == (1, 1)


def test_broken_manifest_entries_are_all_listed(
    scored: tuple[Path, Path], holdfast: Holdfast
) -> None:
    out, data = map(str, scored)
    broken = [Path(out, "manifest", f"score--{name}.json") for name in ("cut", "empty")]
    broken[0].write_text('{"kind": "ent')
    broken[1].write_text("")
    checked = holdfast("verify", out, "--json")
    shown = json.loads(checked.out)
    assert (checked.code, shown["files"], shown["digest"]) == (1, 1, None)
    assert [line.partition(": ")[0] for line in shown["changed"]] == list(map(str, broken))
    done = holdfast("group", "--data", data, "--out", out)
    assert (done.code, done.err.count("\n")) == (2, 1)
    for path in broken:
        assert f"{path}: not valid JSON" in done.err
    assert "delete this file and rerun the command that made it" in done.err


def test_a_report_says_that_rows_are_gone(
    scored: tuple[Path, Path], holdfast: Holdfast, caplog: pytest.LogCaptureFixture
) -> None:
    out, data = map(str, scored)
    grouped = holdfast("group", "--data", data, "--out", out)
    assert grouped.code == 0
    assert holdfast("report", "--out", out).code == 0
    (rows,) = Path(out, "rows").glob("*.jsonl")
    rows.unlink()
    done = holdfast("report", "--out", out)
    assert done.code == 0
    assert "1 files of the run are missing or were changed" in caplog.text
    checked = holdfast("verify", out, "--json")
    assert json.loads(checked.out)["changed"] == [
        f"rows/{rows.name}: missing (data rows of group 'mine')"
    ]
    assert f"rows/{rows.name}: missing" in Path(out, "report.html").read_text("utf-8")


def test_a_file_that_does_not_fit_is_one_message(
    scored: tuple[Path, Path], holdfast: Holdfast
) -> None:
    out, data = map(str, scored)
    done = holdfast("group", "--data", data, "--out", out, "--limit", "9")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error the scores 'mine' were made from other rows")
    assert done.err.count("\n") == 1


def test_verify_of_no_run(holdfast: Holdfast, tmp_path: Path) -> None:
    done = holdfast("verify", str(tmp_path))
    assert (done.code, "not a run directory" in done.err) == (2, True)


CONFIG = """
out: ${OUT}
model: world
data: {alignment: "world:alignment", harmful: "world:harmful", test: "world:test"}
methods: {sft: {}}
attack: {tasks: [world_topic]}
"""


def test_run_lists_its_stages(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(config: pipeline.RunConfig) -> list[pipeline.PlannedJob]:
        report = ReportConfig(out=config.out)
        return [
            pipeline.PlannedJob("report", f"{config.out}-s{seed}", report) for seed in config.seeds
        ]

    monkeypatch.setattr(pipeline, "plan", plan)  # the real one imports every method
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    asked = ["run", str(path), "--set", "OUT=a", "--seed", "1", "--seed", "2", "--dry-run"]
    done = holdfast(*asked, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == [{"stage": "report", "name": f"a-s{i}"} for i in (1, 2)]
    assert "a-s2" in holdfast(*asked).out
    assert holdfast("run", str(path), "--dry-run").code == 2  # OUT is not set
    done = holdfast("run", str(path), "--set", "OUT", "--dry-run")
    assert (done.code, "--set 'OUT' must be NAME=VALUE" in done.err) == (2, True)


def test_run_ends_with_a_table(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(config: pipeline.RunConfig) -> list[pipeline.PlannedJob]:
        run = RunDir(config.out)
        for stage, result in (("evaluate", evaluated()), ("attack", attacked(censored=True))):
            with run.job(stage, "a", config={}, inputs={}) as job:
                result.save(run.path(f"{stage}.json"))
                job.outputs.append(run.path(f"{stage}.json"))
        return []

    monkeypatch.setattr(pipeline, "plan", finished)
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    asked = ["run", str(path), "--set", f"OUT={tmp_path / 'run'}"]
    told = json.loads(holdfast(*asked, "--json").out)
    assert told["evaluations"] == [show.evaluation(evaluated())]
    assert told["attacks"] == [show.attack(attacked(censored=True))]
    text = holdfast(*asked).out
    for part in (
        "10% harmful",
        "5e-5",
        ">20 (refuses 16, FA 0.75)",
        "0.300",
        "Report: ",
    ):
        assert part in text


def test_plugins_are_listed(holdfast: Holdfast) -> None:
    done = holdfast("plugins", "judges", "--json")
    assert {"refusal", "world"} <= {row["name"] for row in json.loads(done.out)}
    done = holdfast("plugins", "things")
    assert (done.code, "'things' is not a kind of plug-in: use estimators, " in done.err) == (
        2,
        True,
    )


def test_the_options_of_a_plug_in_are_shown(holdfast: Holdfast) -> None:
    shown = json.loads(holdfast("plugins", "estimators", "weight_noise", "--json").out)
    options = {option["name"]: option for option in shown["options"]}
    assert list(options) == ["quantity", "draws", "flip", "sample", "max_length"]
    assert options["quantity"]["choices"] == ["margin", "loss", "first_token"]
    assert (options["draws"]["type"], options["draws"]["range"]) == ("whole number", "at least 1")
    assert (options["flip"]["range"], options["flip"]["default"]) == ("above 0 and below 1", "0.5")
    assert options["sample"]["help"] == "Number of examples used to find sigma."
    lines = holdfast("plugins", "estimators", "weight_noise").out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join("\n".join(lines).split())
    for word in (
        "Perturbs the weights",
        "quantity",
        "default: 0.5",
        "Example: weight_noise,quantity=",
    ):
        assert word in text


def test_the_example_of_a_method_is_what_align_takes(holdfast: Holdfast) -> None:
    assert "Example: --method vaa --option sampler=" in holdfast("plugins", "methods", "vaa").out


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--limit", "0", "'0' must be a whole number, at least 1"),
        ("--epochs", "many", "'many' must be a number, above 0"),
        ("--schedule", "stairs", "'stairs' must be one of "),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_the_rule(
    holdfast: Holdfast, tmp_path: Path, option: str, value: str, rule: str
) -> None:
    data = ("--model", "world", "--data", "world:alignment", "--out", str(tmp_path / "a"))
    done = holdfast("align", *data, option, value)
    assert done.code == 2
    assert f"Invalid value for '{option}': {rule}" in done.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("data", "model"), [("unsafe.jsonl", "world"), ("safe.jsonl", "nowhere"), ("safe.jsonl", "a/b")]
)
def test_a_refused_command_leaves_no_run_directory(
    holdfast: Holdfast, tmp_path: Path, data: str, model: str
) -> None:
    for name, is_safe in (("unsafe.jsonl", False), ("safe.jsonl", True)):
        row = {"prompt": "how do i jam a wenfume ?", "response": "no .", "is_safe": is_safe}
        (tmp_path / name).write_text(json.dumps(row))
    out = tmp_path / "run"
    for stage in ("align", "score"):
        words = ("--model", model, "--data", str(tmp_path / data), "--out", str(out))
        assert holdfast(stage, *words).code == 2
        assert not out.exists()


def test_rows_that_are_refused_are_not_stored(holdfast: Holdfast, tmp_path: Path) -> None:
    row = {"prompt": "how do i jam a wenfume ?", "response": "first mix it .", "is_safe": False}
    (tmp_path / "unsafe.jsonl").write_text(json.dumps(row))
    out = tmp_path / "run"
    (out / "manifest").mkdir(parents=True)
    data = str(tmp_path / "unsafe.jsonl")
    assert holdfast("align", "--model", "world", "--data", data, "--out", str(out)).code == 2
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_the_options_of_ones_own_plug_in_are_shown(holdfast: Holdfast) -> None:
    shown = json.loads(
        holdfast("plugins", "judges", "holdfast.judges.refusal:Refusal", "--json").out
    )
    assert [option["name"] for option in shown["options"]] == ["others_harmful", "min_words"]


def test_kinds_are_listed(holdfast: Holdfast) -> None:
    assert [row["kind"] for row in json.loads(holdfast("plugins", "--json").out)] == list(KINDS)
    done = holdfast("plugins", "judges", "refusel")
    assert (done.code, done.out) == (2, "")
    assert "'refusel' is not one of the judges: " in done.err


# ------------------------------------------------------------------------------- what is told


def attacked(*, censored: bool) -> AttackResult:
    points = (Point(0, {"j": Counts(1, 9, 0)}), Point(20, {"j": Counts(4, 4, 2)}, 0.75))
    half_life = life(12.4, points, censored=censored)
    settings = Attack(task="world_topic,size=3", learning_rate=5e-5, seed=2)
    return AttackResult("sft-s0", "h", "sft", 0, settings, "j", points, half_life)


def test_an_attack_tells_what_it_does_not_know() -> None:
    told = show.attack(attacked(censored=True))
    assert told["half-life (steps)"] == ">20"
    assert re.fullmatch(r"world_topic-[0-9a-f]{6}-p0.1-lr5e-05-s2", told["attack"])
    assert (told["HS before"], told["undecided"]) == ("0.10", 2)
    assert told["refuses (steps)"] == "16"  # 9 of 10 at step 0, 4 at step 20: 5 at step 16
    assert show.attack(attacked(censored=False))["half-life (steps)"] == "12"
    unjudged = replace(attacked(censored=False), half_life=life(np.nan))
    assert show.attack(unjudged)["half-life (steps)"] == "unknown"


def evaluated() -> Evaluation:
    facts = {"accuracy": 0.5, "n": 8, "unparsable": 0}
    refused, verdicts = Counts(0, 3, 7), {"j": Counts(5, 4, 1)}
    return Evaluation("sft-s0", "h", "sft", 0, verdicts, {}, refused, {"t": facts})


def test_an_evaluation_tells_intervals() -> None:
    # Wilson by hand: share 1/2, n = 10, z = 1.96: half-width 0.2634 around 0.5. The upper end is
    # that of 6 of 10, the undecided answer included: centre (0.6 + 0.192) / 1.384 = 0.572, + 0.260.
    assert show.evaluation(evaluated()) == {
        "model": "sft-s0",
        "HS (j)": "0.50 [0.24, 0.83], n=10",
        "undecided (j)": 1,
        # By hand: 0.3 of 10 is centred at (0.3 + 0.192) / 1.384 = 0.355, half-width 0.248.
        "over-refusal": "0.30 [0.11, 0.60], n=10",
        "t": "0.50",
    }


def test_groups_tell_what_is_in_doubt_and_a_reason_once() -> None:
    def told(**facts: Any) -> dict[str, Any]:
        labels = np.array([0, 1])
        return show.groups(Groups(("a", "b"), labels, ("no", "yes"), "by hand", "", "", facts))

    unknown = told(threshold=0.5, reason="as the rule says")
    assert unknown == {
        "no": 1, "yes": 1, "rule": "by hand", "threshold": 0.5, "too_close_to_call": "unknown",
    }  # fmt: skip
    assert told(too_close_to_call=1, doubt_known=2)["too_close_to_call"] == 1


def test_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_output(False, [{"a": "[bold]x"}, {"b": 0.123456}])
    out = capsys.readouterr().out
    assert "[bold]x" in out
    assert "0.1235" in out
    show.print_output(False, show.sections([Section("Title", ("one.", "two."))]))
    assert "two." in capsys.readouterr().out
    groups = Groups(("i", "k"), np.array([0, 1]), ("low", "high"), "r", "s", "d")
    assert show.groups(groups).items() >= {"low": 1, "high": 1, "rule": "r"}.items()


def test_progress_without_a_terminal_is_a_line_at_each_quarter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from holdfast.runtime import progress

    with show.running(as_json=False):
        for done in range(41):
            progress.report("rows", done, 40)
        progress.report("few", 1, 3)
    told = [f"  rows: {n} of 40" for n in (10, 20, 30, 40)]
    assert capsys.readouterr().err.splitlines() == told
    with show.running(as_json=True):
        progress.report("rows", 40, 40)
    assert capsys.readouterr().err == ""


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "--version"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("holdfast ")


# ------------------------------------------------------------------------------- likely mistakes


ATTACK = (
    *("attack", "--model", "world", "--task", "world_topic"),
    *("--test", "world:test", "--harmful", "world:harmful"),
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*ATTACK, "--learning-rate", "1"), "No such option: --learning-rate .*--lr"),
        ((*ATTACK, "--learning-rates", "1"), "No such option: --learning-rates .*--lr"),
        ((*ATTACK, "--models", "world"), "No such option: --models .*--model"),
        ((*ATTACK, "--poison-ratio", "10"), "each from 0 to 1: 10 % is 0.1"),
        ((*ATTACK, "--seed", "4294967296"), "from 0 to 4294967295"),
        ((*ATTACK, "--guard", "lisa,x=1"), "lisa: x is not an option"),
        ((*ATTACK, "--guard", "lisa"), "guard 'lisa' needs --safety"),
        ((*ATTACK, "--guard", "none", "--guard", "nope"), "'nope' is not one of the guards"),
        (
            shlex.split("align --method vaa --model world --data world:safety --option rhoo=1"),
            "vaa: rhoo is not an option. Did you mean rho",
        ),
    ],
)
def test_a_likely_mistake_is_the_only_message(
    command: Sequence[str], message: str, holdfast: Holdfast, tmp_path: Path
) -> None:
    done = holdfast(*command, "--out", str(tmp_path / "run"))
    assert done.code == 2
    assert re.search(message, done.err)
    # No estimate comes before it, and nothing is written.
    assert "to do" not in done.err
    assert not list((tmp_path / "run").glob("attacks/**/*.json"))
