"""How often is the trained judge of real text right on rows it has not seen?

It is trained as `holdfast train-judge` trains it, on four fifths of the labelled prompts; rows are
its figures on the others, split by prompt.
"""

from __future__ import annotations

from dataclasses import asdict

from common import Row, add_setting, folder, main, parser, setting, write
from holdfast.judges.classifier import read_labelled, train_classifier


def run_benchmark() -> None:
    """Train a judge per seed and write."""
    options = parser(__doc__)
    add_setting(options)
    options.set_defaults(setting="text")
    chosen = options.parse_args()
    seeds = range(1 if chosen.quick else chosen.seeds)
    with folder(chosen.work) as work:
        setting(chosen, work)  # prepares the labelled rows
        labelled = read_labelled(work / "text" / "judge_train.jsonl")
        made = [train_classifier(labelled, work / f"judge-{seed}", seed=seed) for seed in seeds]
    rows: list[Row] = [
        {
            "seed": seed,
            **report.accuracy.fields("accuracy"),
            **report.decided_accuracy.fields("decided_accuracy"),
            "n": report.accuracy.n,
            "confusion": asdict(report)["confusion"],
        }
        for seed, report in zip(seeds, made, strict=True)
    ]
    write(chosen.json, "judge", {"setting": "text", "quick": chosen.quick}, rows)


if __name__ == "__main__":
    main(run_benchmark)
