"""Chat templates of the shapes that real models have, each in a few lines."""

from __future__ import annotations

from typing import NamedTuple

HELP = "You are a helpful assistant."
THINK = "<think>\n\n</think>\n\n"
_CHATML = "'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


class Shape(NamedTuple):
    """A template, and what it writes around a prompt and its answer, derived by hand."""

    template: str
    before: str
    asked: str
    lead: str
    answer: str
    """Blanks, {}, and the end of the turn, up to the token that ends it."""


CHATML = Shape(
    "{% for m in messages %}{{ " + _CHATML + " }}{% endfor %}" + _ASK,
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "",
    "{}<|im_end|>",
)
QWEN25 = CHATML._replace(
    template="{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + HELP
    + "<|im_end|>\n{% endif %}"
    + CHATML.template,
    before=f"<|im_start|>system\n{HELP}<|im_end|>\n<|im_start|>user\n",
)
QWEN3 = CHATML._replace(
    template="{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content "
    "}}\n</think>\n\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% else %}{{ "
    + _CHATML
    + " }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
    asked=CHATML.asked + THINK,
)
QWEN3_WITHOUT_SWITCH = QWEN3._replace(
    template=QWEN3.template.replace("enable_thinking is defined and", "false and")
)
LLAMA3 = Shape(
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: "
    "{{ strftime_now('%d %b %Y') }}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt "
    "%}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "",
    "{}<|eot_id|>",
)
GEMMA = Shape(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == "
    "'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "<s><start_of_turn>user\n",
    "<end_of_turn>\n<start_of_turn>model\n",
    "",
    "{}<end_of_turn>",
)
MISTRAL = Shape(
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}",
    "<s>[INST] ",
    " [/INST]",
    "",
    " {}</s>",
)
DEEPSEEK = Shape(
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
    "<s><|User|>",
    "<|Assistant|><think>\n",
    "\n</think>\n\n",
    "{}<|end|>",
)
PARTS = Shape(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == "
    "'text' %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + _ASK,
    CHATML.before,
    CHATML.asked,
    "",
    CHATML.answer,
)
HARMONY = Shape(
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "<|start|>user<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "",
    "{}<|return|>",
)
WITHOUT_GENERATION_PROMPT = CHATML._replace(template=CHATML.template.removesuffix(_ASK))

SHAPES = {
    "chatml": CHATML,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "qwen3 without switch": QWEN3_WITHOUT_SWITCH,
    "llama-3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "parts": PARTS,
    "harmony": HARMONY,
    "without generation prompt": WITHOUT_GENERATION_PROMPT,
}
TRIMMING = frozenset({"llama-3", "gemma"})
"""Shapes that remove blanks around the prompt."""

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content CONTENT }}<|im_end|>\n"
_LOOP = "{% for m in messages %}" + _TURN + "{% endfor %}" + _ASK


def _content(filters: str) -> str:
    return _LOOP.replace("CONTENT", filters)


BROKEN = {
    "needs a system turn": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn is needed') }}"
        "{% endif %}" + CHATML.template,
        r"fails on .* user \(TemplateError: a system turn is needed\)",
    ),
    "syntax": ("{% for m in messages %}{{ m['content'] ", "TemplateSyntaxError: unexpected end"),
    "undefined": ("{{ settings.system.text }}" + CHATML.template, "'settings' is undefined"),
    "unsafe": ("{{ messages.__class__.__mro__ }}" + CHATML.template, "SecurityError: access to"),
    "division": ("{{ 1 / (messages | length - 1) }}" + CHATML.template, "ZeroDivisionError"),
    "endless": (
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "does not come to an end",
    ),
    "constant": ("<|im_start|>user\nhello<|im_end|>\n", "leaves the prompt out"),
    "prompt only": (
        "{{ messages[0].content }}{% if add_generation_prompt %}<a>{% endif %}",
        "leaves the answer out",
    ),
    "escaped": (_content("| e"), "changes the text of the prompt"),
    "json": (_content("| tojson"), "changes the text of the prompt"),
    "lower": (_content("| lower"), "leaves the prompt out"),
    "one line": (_content("| replace('\n', ' ')"), "changes the text of the prompt"),
    "twice": (_content("~ m.content"), "writes the prompt 2 times"),
    "other header": (
        CHATML.template.replace("<|im_start|>assistant\n{% endif", "<|im_start|>bot\n{% endif"),
        r"begins an answer with .*assistant\\n' in training, which does not continue the .*bot",
    ),
    "blank": (" \n", r"the chat template is ' \\n'"),
}
"""Templates that cannot be used, and what the message says."""
