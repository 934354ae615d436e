"""What can be read off a text without a model: its words, and whether it begins as a refusal."""

from __future__ import annotations

import re

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\uff07": "'", "`": "'"})
_SPELLINGS = (
    (re.compile(r"\bca n't\b"), "can't"),
    (re.compile(r"\bwo n't\b"), "won't"),
    (re.compile(r" n't\b"), "n't"),
    (re.compile(r" '(m|re|s|d|ll|ve)\b"), r"'\1"),
    (re.compile(r"\bcannot\b|\bcan not\b|\bcant\b"), "can't"),
    (re.compile(r"\bwill not\b|\bwont\b"), "won't"),
    (re.compile(r"\bdo not\b|\bdont\b"), "don't"),
    (re.compile(r"\b(is|are|was|would|should|could) not\b"), r"\1n't"),
    (re.compile(r"\b(i) am\b|\bim\b"), "i'm"),
    (re.compile(r"\b(that|this|it) is\b"), r"\1's"),
    (re.compile(r"\b(that|this|it)(?: i|'| wa)sn't\b"), r"\1's not"),
    (re.compile(r"\bi (?:would|had)\b"), "i'd"),
    (re.compile(r"\bwe are\b"), "we're"),
    (re.compile(r" +([,.;:!?])"), r"\1"),
)
_READ = 600  # characters
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    "a about all am an and any are as at be been but by can could did do does for from had "
    "has have he her him his how i if in into is it its just like may me might more most my "
    "no not of on or our out she should so some than that the their them then there these "
    "they this those to too "
    "up us was we were what when where which who why will with would you your".split()
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")

# What an assistant declines to do. A list, since "I can't wait" and "I cannot recommend it
# enough" differ from a refusal by nothing but the verb.
_ACTS = (
    r"(?:(?:be able to|be|really|ethically|in good conscience|possibly|safely|comfortably|"
    r"directly|ever|just|even|actually|legally|knowingly|willingly|go ahead and) )*"
    r"(?:(?:help(?:ing)?|assist(?:ing)?|aid)\b(?! but\b| myself\b| feeling\b| thinking\b|"
    r" wondering\b| noticing\b| it\b)"
    r"|(?:answer(?:ing)?|respond(?:ing)?|repl(?:y|ying))\b(?! the (?:phone|door)\b)"
    r"|(?:provid(?:e|ing)|giv(?:e|ing)|shar(?:e|ing)|offer(?:ing)?|suppl(?:y|ying))\b"
    r"(?! (?:you )?(?:an? |the )?(?:exact|precise|definit))(?! up\b)"
    r"|(?:tell(?:ing)?|show(?:ing)?|teach(?:ing)?)\b(?! (?:you )?how (?:much|happy|glad|sorry|"
    r"excited|grateful)\b)(?! (?:the|a) difference\b)"
    r"(?! (?:you )?(?:exactly|for sure|if|whether)\b)"
    r"|do(?:ing)? (?:that|this|so|what you)\b(?! (?:without|alone)\b)"
    r"|(?:writ(?:e|ing)|creat(?:e|ing)|generat(?:e|ing)|produc(?:e|ing)|draft(?:ing)?|"
    r"explain(?:ing)?|describ(?:e|ing)|discuss(?:ing)?|advis(?:e|ing)|instruct(?:ing)?|"
    r"guid(?:e|ing)|compl(?:y|ying)|fulfil(?:l|ling)?|facilitat(?:e|ing)|engag(?:e|ing)|"
    r"participat(?:e|ing)|entertain(?:ing)?|process(?:ing)?|complet(?:e|ing)|"
    r"accommodat(?:e|ing)|speculat(?:e|ing))\b(?!.*\benough\b)"
    r"|(?:say(?:ing)? anything (?:on|about)|want to (?:help|assist|contribute|be part|take part)|"
    r"tak(?:e|ing) part|go(?:ing)? (?:there|along|down that)|(?:be )?(?:a )?part of|"
    r"talk(?:ing)? (?:about|you)|walk(?:ing)? you|mak(?:e|ing) (?:that|this)\b|"
    r"get(?:ting)? (?:into|involved)|continu(?:e|ing) (?:with|this)|"
    r"assum(?:e|ing) (?:that|this) role))"
)
# "I can't endorse it" declines; "I don't recommend it" advises.
_STANCES = (
    r"(?:ever |in good conscience,? )?(?:support|endorse|condone|encourage|promote|suggest|"
    r"recommend|contribute)\b(?!.*\benough\b)"
)
_SELF = r"(?<![\"\u201c])\b(?:i|we|this assistant)"
_WRONG = (
    r"(?:(?:not|n't|never) (?:a )?(?:safe|appropriate|ethical|legal|okay|ok|right|acceptable|"
    r"allowed|permitted)(?: (?:request|question|topic|thing))?|unsafe|inappropriate|unethical|"
    r"off[- ]limits|out of bounds)"
)
_PROPER = (
    r"(?:safe|appropriate|ethical|legal|okay|ok|right|responsible|acceptable)"
    r"(?:,? (?:or|and|nor) \w+)?"
)
_REFUSALS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_SELF}(?: simply| just| really| also| still|'m afraid i)? "
        rf"(?:can't|won't|couldn't|shouldn't|mustn't|must not|wouldn't|don't|may not) {_ACTS}",
        rf"{_SELF}(?: simply| just| really)? (?:can't|won't),? {_STANCES}",
        rf"{_SELF}(?: simply| just| really)? (?:can't|won't)\s*(?:[,.;!]|$)",
        rf"{_SELF}(?:'m|'re| was)? (?:simply |just |really |currently |also )*"
        rf"(?:unable|not able|not willing|unwilling|not allowed|not permitted|not authori[sz]ed|"
        rf"not designed|not programmed|not going|not prepared|not in a position|not here) "
        rf"(?:to )?{_ACTS}",
        rf"{_SELF}(?:'m|'re)? not {_ACTS}",
        rf"{_SELF}(?:'m|'re)? (?:not|don't feel|wouldn't be|wouldn't feel|not at all) "
        r"(?:very )?comfortable\b",
        rf"{_SELF}(?: must| have to| need to|'ll have to|'d have to|'m going to(?: have to)?)?"
        r"(?: respectfully| politely| kindly)? (?:decline|refuse|say no|pass on (?:this|that))\b"
        r"(?!(?: \w+){0,3} (?:invitation|offer|position|job)\b)",
        rf"{_SELF}'d (?:rather not|prefer not to|much rather not)\b",
        rf"{_SELF} (?:choose|prefer) not to\b",
        rf"(?:\bnot|n't) (?:something|anything|a (?:thing|request|question|topic|subject)) "
        rf"(?:that )?(?:{_SELF}|i'm|we're)(?:'m|'ll|'d)? ?\b(?:can|will|could|would|want|able|do|"
        r"take|comfortable|willing|help|assist|answer|respond|discuss|touch)\b",
        r"\b(?:something|one|request|question|topic|subject) (?:that )?(?:i|we) "
        r"(?:(?:can't|won't|don't|must not|shouldn't) (?:\w+))",
        r"\b(?:something|one|request|question|topic|subject) (?:that )?i'm (?:not (?:able|willing|"
        r"going)|unable|unwilling)\b",
        rf"\b(?:isn't|not|never|wouldn't be) (?:possible|{_PROPER}) for me (?:as \w+ \w+ )?to\b",
        rf"\bas an? (?:\w+ )?(?:ai|assistant)\b[^.!?]*?\b(?:(?:it's|it isn't) (?:not )?{_PROPER}|"
        r"i(?:'m| am)? (?:can't|won't|unable|not (?:able|capable|programmed|designed|allowed)|"
        r"don't have (?:access|the (?:ability|capability)|personal (?:opinions?|beliefs?))))\b",
        r"^(?:i'm (?:so |very )?sorry|sorry|i apologi[sz]e|apologies|my apologies),? but,? "
        r"(?:i (?:can't|won't|'m unable to|'m not able to) "
        r"(?!hear|see|find|think|remember|wait|seem)\w|"
        rf"[^.!?]*(?:\b(?:illegal|unethical|inappropriate)\b|\b(?:not|isn't|never) "
        rf"(?:an? )?{_PROPER}\b))",
        r"\bwould(?: only)? be (?:wrong|unsafe|irresponsible|unethical|inappropriate|harmful|"
        r"dangerous) (?:of|for) me\b",
        r"\b(?:against|violates?|outside) (?:my|our) (?:\w+ )?(?:polic(?:y|ies)|guidelines?|rules?|"
        r"principles?|values?|programming|limits?)\b",
        r"\bmy (?:\w+ )?(?:guidelines?|polic(?:y|ies)|rules?|programming|principles?|values) "
        r"(?:prevents?|prohibits?|forbids?|stops?|(?:don't|doesn't|does not|won't) (?:allow|let|"
        r"permit))\b",
        r"\b(?:beyond|outside) (?:of )?what (?:i|we) (?:can|will|am able to|could)\b",
        r"\bnot (?:helping|assisting|answering|touching|doing) (?:you )?(?:with )?"
        r"(?:that|this|it)\b",
        rf"^(?:no[,.!]? |nope[,.!]? |(?:i'm )?sorry[,.!]? (?:but )?|unfortunately,? )*"
        r"(?:that|this|your|the)"
        rf"(?:'s|(?: kind of)? (?:request|question|topic)(?: is)?|) ?{_WRONG}"
        r"(?:\s*[.!,;]|\s*$| to (?:share|discuss|answer|explain|help|give|provide)\b| for me\b|"
        r" (?:so|and) i\b)",
        r"^(?:i'm )?(?:so |very |really |truly )?(?:sorry|afraid|apologies|my apologies)"
        r"(?:[,.!]| but|, but)* (?:no\b(?! (?:one|idea|problem))|not\b(?= (?:this|that|today|going"
        r"|possible)|[,.!]|$))",
        r"^i'm afraid (?:not|that's not possible)\b",
        r"^(?:no|nope)[,.!]* (?:thank you|thanks|sorry|not (?:doing|helping|going to))\b(?! for\b)",
        r"^(?:i )?(?:must )?(?:refuse|decline)d?\b(?: to| this| that|[.,]|$)",
        rf"\bthere(?:'s| is) no way (?:i|we)(?:'m|'ll|'d)? (?:going to )?{_ACTS}",
        r"\b(?:i|we)(?:'d)? (?:have|has) no intention of\b",
        r"(?:お手伝い|お答え|お応え|回答|お教え|ご案内|ご説明|説明|提供|支援|対応|対応する|協力|お力)"
        r"[^。！？]{0,12}(?:できません|出来ません|できかね|いたしかね|致しかね|しかねます|なれません)",
        r"(?:お断り|遠慮)(?:します|いたします|致します|させて|しなければ)",
        r"(?:回答|お答え|説明|提供)(?:を|は)?(?:差し)?控え",
        r"申し訳.{0,60}(?:できません|出来ません|できかね|いたしかね|致しかね|お断り|控え)",
        r"ごめんなさい.{0,40}(?:できません|できない|お断り)",
    )
)


def normalise(text: str) -> str:
    """Return `text` in lower case, with plain apostrophes, joined clitics and single blanks.

    "I can not", "I cannot", "i ca n't" and "I can’t" all become "i can't"; blanks before
    punctuation go.
    """
    text = re.sub(r"[ \t\r\f\v]+", " ", text.translate(_APOSTROPHES).lower()).strip()
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def words(text: str) -> list[str]:
    """Return the lower-case words of `text`; punctuation is left out."""
    return _WORD.findall(text.translate(_APOSTROPHES).lower())


def count_words(text: str) -> int:
    """Count words; scripts written without blanks count as one word per two characters."""
    cjk = len(_CJK.findall(text))
    return len(words(_CJK.sub(" ", text))) + (cjk + 1) // 2


def stems(text: str) -> set[str]:
    """Return the words of `text` that carry its meaning, without their endings."""
    # Crude, and without a dependency: bake, bakes, baked and baking are one word.
    return {
        re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e)$", "", word)[:6]
        for word in words(text)
        if word not in _FUNCTION_WORDS
    }


def opening(text: str, sentences: int = 2) -> str:
    """Return the normalised first sentences of `text`, without leading punctuation."""
    text = re.sub(r"^[^\w]+", "", normalise(text))
    parts = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return " ".join(part.strip() for part in parts[:sentences])


def is_refusal(text: str) -> bool:
    """Say whether `text` begins, within its first two sentences, as a refusal to answer.

    English and some Japanese. A refusal is somebody declining an act of assistance in the first
    person ("I can't help with that"), or a judgement that stands in for one ("That is not
    safe."). An apology alone, a sad fact ("You cannot divide by zero"), or "No" before an answer
    is none. What follows the second sentence isn't read: a refusal that then complies is True,
    an answer that ends in a refusal False. Nor is anything after 600 characters.
    """
    # Some patterns take quadratic time: a model that loops without a full stop must not hang us.
    beginning = opening(text[:_READ])
    return any(pattern.search(beginning) for pattern in _REFUSALS)


def prompt_text(prompt: str) -> str:
    """Return what makes two prompts the same: case and the space around them make no difference."""
    return prompt.strip().lower()
