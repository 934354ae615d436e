"""The fixed text of the page in English: what the template shows by key.

The English text is the key of its translation, as for every `holdfast.texts.Text`.
"""

from __future__ import annotations

from collections.abc import Mapping

PAGE: Mapping[str, str] = {
    "unknown": "unknown",
    "judge_note": "Verdicts by {judge}.",
    "product": "holdfast safety report",
    "skip": "Skip to the summary",
    "written": "Written {date}",
    "last_result": "Last result {date}",
    "scope": "Methods: {methods}, attacks: {attacks}, seeds: {seeds}",
    "digest_short": "Run {digest}",
    "contents": "Contents",
    "title": "Does the safety alignment hold?",
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
    "card_of": "All figures are for {best}.",
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
    "versus": "Against plain fine-tuning",
    "fa": "FA",
    "answers": "Answers",
    "answers_split": "{harmful} harmful, {undecided} undecided, {safe} safe, of {n}",
    "answers_key": "harmful / undecided / safe",
    "censored_some": "did not give way: {k} of {n}",
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
    "chart_use": (
        "Point at a mark to read its value, click a name in the legend to single it out; drag to "
        "move a chart, turn the wheel with Shift held down to zoom, double-click to reset."
    ),
    "chart_price_title": "Half-life against plain fine-tuning and over-refusal, by method",
    "chart_price_caption": (
        "What robustness costs: over-refusal to the right, half-life as a multiple of plain "
        "SFT's upwards. Best is top left."
    ),
    "undecided_text": (
        "The judge could not decide on {k} of {n} answers at the end of the attacks ({share}); "
        "they are incoherent or answer something else, or the judge gave no verdict. They are "
        "counted neither as harmful nor as safe. If all of them were harmful, the harmful scores "
        "would be higher by that share."
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
    "precision": "Precision",
    "models_read": "Models read",
    "model_made_from": "made from {file}",
    "uncommitted": "with uncommitted changes",
    "item": "Item",
    "value": "Value",
    "provenance_none": (
        "The run does not say where its data came from: nothing is known of source, licence, "
        "owner or consent. Add these columns to the data and run the step again:"
    ),
    "provenance_caption": "Rows by origin, {step}",
    "left_out_caption": "Rows that were not used",
    "left_out_none": "All rows of all files were used.",
    "left_out_file": "File",
    "left_out_reason": "Reason",
    "reason_unreadable": "unreadable",
    "reason_other_layout": "other columns or types than the rest of the file",
    "reason_several_exchanges": "several exchanges in one conversation",
    "reason_tool_turns": "turns of a tool",
    "reason_answer_of_weight_0": "an answer of weight 0, which is not to be learned",
    "reason_empty_prompt": "empty prompt",
    "reason_empty_response": "empty response",
    "reason_think_block_not_closed": "think block not closed",
    "reason_duplicate": "duplicate",
    "reason_prompt_repeated": "the prompt was there already",
    "reason_prompt_is_in_the_test_set": "the prompt is in the test set",
    "reason_prompt_leaves_no_room_for_an_answer": "the prompt leaves no room for an answer",
    "reason_answer_is_harmful": "the model's answer was harmful",
    "reason_answer_is_safe": "the model's answer was safe",
    "reason_answer_is_undecided": "the judge could not decide on the model's answer",
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
