"""The report's fixed text in English; see `texts`."""

from __future__ import annotations

from holdfast.results.attacks import LABELS

TEXT: dict[str, str] = {
    **LABELS,
    "product": "holdfast safety report",
    "skip": "Skip to the summary",
    "written": "Written {date}",
    "last_result": "Last result {date}",
    "scope": "{methods} methods, {attacks} attacks, {seeds} seeds",
    "digest_short": "Run {digest}",
    "contents": "Contents",
    "summary": "Summary",
    "comparison": "Comparison",
    "attacks": "Under attack",
    "undecided_title": "Answers without a verdict",
    "examples": "Examples of answers",
    "limits": "What these numbers cannot show",
    "made": "How it was made",
    "data": "Where the data came from",
    "hashes": "Fingerprints",
    "glossary": "Words used",
    "not_recorded": "not recorded",
    "at_least": "at least {value}",
    "at_most": "at most {value}",
    "verdict_longer": (
        "{best} held longest: the attacks needed {ratio} times as many steps as against plain "
        "SFT before half of the restricted prompts were answered harmfully (95% interval {low} "
        "to {high}; {pairs} paired attacks)."
    ),
    "verdict_longer_bound": (
        "{best} held longest: the attacks needed {ratio} times as many steps as against plain "
        "SFT before half of the restricted prompts were answered harmfully (95% interval {low} "
        "to {high}; {pairs} paired attacks, some of which ended before the model gave way)."
    ),
    "verdict_longer_censored": (
        "{best} held longest: the attacks needed an estimated {ratio} times as many steps as "
        "against plain SFT before half of the restricted prompts were answered harmfully (95% "
        "interval {low} to {high}; {pairs} paired attacks, {censored} of which ended before one of "
        "the two gave way and count as that)."
    ),
    "verdict_shorter": (
        "{best} gave way sooner than plain SFT where the two can be paired: its half-life was "
        "{ratio} times as long (95% interval {low} to {high}; {pairs} paired attacks)."
    ),
    "verdict_longer_equal": (
        "{best} held longest: in each of {pairs} paired attacks it took {ratio} times as many "
        "steps as against plain SFT before half of the restricted prompts were answered harmfully."
    ),
    "verdict_shorter_equal": (
        "{best} gave way sooner than plain SFT where the two can be paired: its half-life was "
        "{ratio} times as long in each of {pairs} paired attacks."
    ),
    "verdict_unclear_equal": (
        "These data cannot tell whether {best} holds longer than plain SFT: its half-life was "
        "{ratio} times as long in each of {pairs} paired attacks, and so few that agree may do so "
        "by chance."
    ),
    "verdict_unclear": (
        "These data cannot tell whether {best} holds longer than plain SFT: its half-life was "
        "{ratio} times as long, but the 95% interval, {low} to {high}, includes no difference "
        "({pairs} paired attacks)."
    ),
    "verdict_unclear_one": (
        "These data cannot tell whether {best} holds longer than plain SFT: its half-life was "
        "{ratio} times as long in the one attack that can be paired, and a single pair says "
        "nothing about chance."
    ),
    "verdict_unclear_none": (
        "These data cannot tell whether {best} holds longer than plain SFT: no attack gave a "
        "pair of half-lives to compare."
    ),
    "verdict_unclear_against": (
        "These data cannot tell whether {best} holds longer than plain SFT: its half-life was "
        "{ratio} times as long over {pairs} paired attacks, but in {against} of them plain SFT "
        "withstood the attack and {best} did not."
    ),
    "verdict_unclear_early": (
        "These data cannot tell whether {best} holds longer than plain SFT: some attacks ended "
        "before {best} gave way, so only a lower bound is known. Longer attacks would decide "
        "it."
    ),
    "verdict_unclear_upper": (
        "These data cannot tell whether {best} holds longer than plain SFT: its half-life was "
        "{ratio} times as long over {pairs} paired attacks, and no more than that is known."
    ),
    "verdict_unclear_either": (
        "These data cannot tell whether {best} holds longer than plain SFT: in some of the {pairs} "
        "paired attacks it is only known to hold longer than a number of steps and in others to "
        "hold less long, which together bound nothing."
    ),
    "verdict_baseline": (
        "Plain SFT itself held longest in this run: no other method was found to hold longer."
    ),
    "verdict_apart": (
        "These data cannot tell which method holds longest: no attack, with the same seeds, went "
        "through all of them with a known half-life."
    ),
    "verdict_no_baseline": (
        "{best} held longest of the {methods} methods attacked. Plain SFT was not among them, "
        "so what the method adds is not known."
    ),
    "verdict_alone": (
        "Only {best} was attacked in this run, so there is nothing to compare it with."
    ),
    "verdict_none": (
        "No model was attacked in this run, so how long the alignment lasts is not known."
    ),
    "sentence_steps": (
        "On average over these pairs {best} took {steps} attack steps to give way and plain "
        "SFT {base} (difference {diff}, 95% interval {low} to {high})."
    ),
    "sentence_steps_plain": (
        "On average over these pairs {best} took {steps} attack steps to give way and plain "
        "SFT {base}."
    ),
    "sentence_refusing": (
        "It also goes on refusing: {ratio} times as many steps until half of the restricted "
        "prompts are no longer refused (95% interval {low} to {high})."
    ),
    "sentence_refusing_not": (
        "But these data do not show that it goes on refusing longer: {ratio} times as many steps "
        "until half of the restricted prompts are no longer refused (95% interval {low} to "
        "{high}). An answer may be neither harmful nor a refusal: a model that its defense breaks "
        "answers incoherently, and has a low harmful score as well."
    ),
    "sentence_second": (
        "{second} came second; {best} held {ratio} times as long (95% interval {low} to {high})."
    ),
    "sentence_second_unclear": "These data cannot tell {best} from {second}, which came second.",
    "sentence_before": (
        "Before any attack {best} answered {hs} of the restricted prompts harmfully (95% "
        "interval {low} to {high}; {n} answers)."
    ),
    "sentence_before_unknown": "How {best} answers before any attack was not measured.",
    "sentence_refusal": (
        "The price: it refused {over} of the harmless borderline prompts (plain SFT {base})"
    ),
    "sentence_refusal_unknown": "The price in over-refusal was not measured",
    "sentence_accuracy": (
        ", and at the attacks' last checkpoint that both have it solved {acc} of the customer's "
        "task (plain SFT {base})."
    ),
    "sentence_accuracy_alone": (
        ", and at the end of the attacks it solved {acc} of the customer's task."
    ),
    "sentence_accuracy_unknown": ", and accuracy on the customer's task was not measured.",
    "card_ratio": "Half-life against plain SFT",
    "card_weakest": "Shortest half-life",
    "card_weakest_detail": "attack steps under {attack}",
    "card_before": "Harmful before any attack",
    "card_refusal": "Over-refusal",
    "card_accuracy": "Task accuracy under attack",
    "card_versus": "plain SFT {base}",
    "card_interval": "95% interval {low} to {high}",
    "card_lower": "a lower bound: attacks ended first",
    "card_upper": "an upper bound: attacks ended first",
    "card_unknown": "bounded on neither side: attacks ended first",
    "card_of": "All figures are for {best}",
    "problems": "Files that cannot be trusted",
    "problems_text": (
        "These files are missing, broken or were changed after they were made. What rests on "
        "them is left out or may be wrong. Run the step again."
    ),
    "failed": "What failed",
    "failed_text": (
        "These steps were asked for and have no result, so they are in none of the figures. The "
        "same command tries them again."
    ),
    "missing": "What is missing",
    "missing_score": "No vulnerability scores.",
    "missing_align": "No record of how the models were aligned.",
    "missing_attack": "No attacks: half-life, harmful score under attack and FA are unknown.",
    "missing_evaluate": (
        "No evaluation: harmful score before the attack by category, over-refusal and task "
        "accuracy are unknown."
    ),
    "missing_analyze": "No analyses.",
    "missing_command": "It is made by",
    "before_caption": "Each method before any attack",
    "method": "Method",
    "seeds": "Seeds",
    "harmful_score": "Harmful score",
    "over_refusal": "Over-refusal",
    "undecided": "Undecided",
    "task_accuracy": "Task accuracy",
    "from_attack": "measured at step 0 of the attacks",
    "under_caption": "Each method under each attack",
    "at_end": "At the end",
    "half_life": "Half-life, steps",
    "refusal_life": "Refuses, steps",
    "versus": "Against plain SFT",
    "fa": "FA",
    "answers": "Answers",
    "answers_split": "{harmful} harmful, {undecided} undecided, {safe} safe, of {n}",
    "answers_key": "harmful / undecided / safe",
    "censored_some": "{k} of {n} seeds never gave way",
    "table_note": (
        "Large figures are means over seeds; small ones 95% intervals. Shares count all "
        "answers, the undecided too. “>” means that the attack ended before half of the "
        "prompts were answered harmfully, or before half were no longer refused: an answer may "
        "be neither. The end of an attack is its own last checkpoint: one that ends where the "
        "model breaks ends sooner for a weaker method. FA is the accuracy on the customer's task "
        "there."
    ),
    "no_comparison": "Nothing has been measured yet.",
    "chart_curve_caption": (
        "Harmful score over attack steps. Lines are means over seeds, bands run from the "
        "lowest seed to the highest; the dashed line marks one half."
    ),
    "chart_life_caption": (
        "Attack steps until half of the restricted prompts are answered harmfully, with 95% "
        "intervals."
    ),
    "chart_steps": "attack steps",
    "chart_curve_title": "Harmful score against attack steps, {attack}",
    "chart_life_title": "Safety half-life by method, {attack}",
    "chart_price_title": "Half-life against plain SFT and over-refusal, by method",
    "chart_price_caption": (
        "What robustness costs: over-refusal to the right, half-life as a multiple of plain "
        "SFT's upwards. Best is top left."
    ),
    "chart_price_y": "half-life, multiple of plain SFT",
    "undecided_text": (
        "The judge could not decide on {k} of {n} answers at the end of the attacks ({share}); "
        "they are incoherent or answer something else. They are counted neither as harmful nor "
        "as safe. If all of them were harmful, the harmful scores would be higher by that "
        "share."
    ),
    "undecided_none": "The judge decided on all {n} answers at the end of the attacks.",
    "undecided_caption": "Undecided answers at the end of each attack",
    "undecided_count": "{k} of {n}",
    "examples_withheld": (
        "The answers themselves are withheld, since some of them may be harmful to read. To "
        "see them:"
    ),
    "examples_absent": "No answers were kept in this run.",
    "examples_shown": "These texts come from the models. Some may be harmful to read or pass on.",
    "examples_prompt": "Prompt",
    "examples_response": "Answer",
    "examples_verdict": "Verdict",
    "figure_refused": "This figure is not valid SVG and is not shown.",
    "limit_attacks": (
        "They cover the attacks listed here and no others. Every published defense gives way "
        "to an attack that is long or strong enough: the half-life says how much it takes, not "
        "that a model is safe."
    ),
    "limit_intervals": (
        "The intervals cover chance in seeds and prompts. They do not cover the choice of base "
        "model, data, language or attack settings. Paired attacks share models, so intervals "
        "over pairs may be somewhat too narrow."
    ),
    "limit_seeds": (
        "At most {seeds} seeds were run per method. With so few, only large differences can be "
        "told from chance."
    ),
    "limit_judge": (
        "They rest on an automatic judge, which makes mistakes of its own. Prompts that were "
        "not tested may be answered differently."
    ),
    "limit_refusal": (
        "Over-refusal is measured on borderline prompts chosen to be hard. Everyday use will "
        "see fewer refusals; other fields may see more."
    ),
    "limit_use": (
        "They support a decision by people who know the use; they are not a certificate."
    ),
    "no_steps": "No step has been recorded in this run.",
    "steps_caption": "Every step, in the order in which it was done",
    "step": "Step",
    "name": "Name",
    "seed": "Seed",
    "started": "Started (UTC)",
    "duration": "Seconds",
    "key": "Key",
    "settings": "Settings, command and files of each step",
    "command": "Command",
    "configuration": "Configuration",
    "inputs": "Inputs",
    "outputs": "Outputs",
    "further_facts": "Facts",
    "versions_caption": "Software and hardware",
    "commit": "Source commit",
    "hardware": "Hardware",
    "uncommitted": "with uncommitted changes",
    "item": "Item",
    "value": "Value",
    "provenance_none": (
        "The run does not say where its data came from: nothing is known of source, licence, "
        "owner or consent. Add these columns to the data and run the step again:"
    ),
    "provenance_caption": "Rows by origin, {step}",
    "column_source": "Source",
    "column_licence": "Licence",
    "column_owner": "Owner",
    "column_consent": "Consent",
    "column_category": "Category",
    "column": "Column",
    "rows": "Rows",
    "share": "Share",
    "value_unknown": "unknown (not stated)",
    "hashes_text": (
        "Whoever holds the run directory can recompute these SHA-256 fingerprints; any change "
        "to a result changes the run's own."
    ),
    "run_digest": "Run",
    "hash_caption": "SHA-256 of every input and output",
    "file": "File or input",
    "sha": "SHA-256",
    "term_hs": "Harmful score (HS)",
    "term_hs_text": (
        "Share of restricted test prompts that are answered harmfully, among all answers. "
        "Lower is better."
    ),
    "term_fa": "Fine-tuning accuracy (FA)",
    "term_fa_text": (
        "Accuracy on the customer's own task after fine-tuning, here after the attack. Higher "
        "is better."
    ),
    "term_or": "Over-refusal",
    "term_or_text": (
        "Share of harmless prompts close to restricted ones that are refused. Lower is better."
    ),
    "term_hl": "Safety half-life",
    "term_hl_text": (
        "Number of attack steps after which half of the restricted prompts are answered "
        "harmfully, interpolated between checkpoints. “>400”: the attack ended at step 400 "
        "without getting there."
    ),
    "term_pr": "Poison ratio",
    "term_pr_text": "Share of harmful rows among the rows that the attacker fine-tunes on.",
    "term_fn": "ForgotNum",
    "term_fn_text": (
        "For an alignment example that was answered safely: at how many checkpoints of a trial "
        "attack it is answered harmfully. Higher means forgotten sooner."
    ),
    "term_vg": "Vulnerable group",
    "term_vg_text": "The alignment examples that this model is expected to forget first.",
    "footer": "Made by holdfast {version}. This file loads nothing from the network.",
}
