"""Where a text may be cut so that its tokens are those of its parts: what a tokenizer's content says of blanks.

A place is a match of a regular expression, at whose beginning the text is cut; the blank there belongs to what follows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from typing import Any

AFTER_A_WORD = re.compile(r"(?<=\S)[ \t\n\r]")
SPACE_AFTER_A_WORD = re.compile(r"(?<=\S) ")
# One space between letters, digits or ASCII signs, none of which is drawn together with a space: what begins such a
# cluster (Prepend) or continues one (Extend, SpacingMark) is left out (UAX 29, Unicode 16; what of it matches \w).
_PREPENDED = (
    "\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84-\U00011a89\U00011d46\U00011f02"
)
_EXTENDING = "\u0e33\u0eb3\uff9e\uff9f"
SPACE_BETWEEN = re.compile(rf"(?<=[\w!-~])(?<![{_PREPENDED}]) (?=[\w!-~])(?![{_EXTENDING}])")

# What keeps a token from reaching over a blank, or a blank from changing what stands before it.
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_LOCAL_SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# and beside the first, what treats a beginning with a space as it does that space in a text
_STEADY_SPLITTERS = _LOCAL_SPLITTERS | {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}
_MAKE_BLANKS = {"NFKC", "NFKD", "Precompiled"}  # out of a letter
_RUNS_OF_BLANKS = {" {2,}", r"\s{2,}|[\n\r\t]"}  # one space is none
_LLAMA_3 = (  # as EuroBERT has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PARTS_BEGIN_WITH_SPACES = {_LLAMA_3}  # patterns in which a single space is the beginning of a part


def word_ends(tokenizer: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Places up to which the tokens of a text depend on what stands up to there alone; None where there are none.

    The content of a tokenizer.json says it. So it is where letters are normalised one by one, words are told apart by
    blanks before anything else (or by a pattern in which a blank begins a word, as GPT-2's, or by the sign that stands
    for a space), and no token that was added has a blank inside. It is so for the tokenizers of BERT, RoBERTa and
    XLM-R. The table of sentencepiece (`Precompiled`) is of what is drawn together, a space and an accent on it too.
    """
    normalizers = parts_of(tokenizer.get("normalizer"), "normalizers")
    splitters = parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not splitters:
        return None
    first, strict = splitters[0], False
    by_pattern = first["type"] == "ByteLevel" and first.get("use_regex", True)
    if not by_pattern and first["type"] not in _LOCAL_SPLITTERS:
        if not (first["type"] == "Metaspace" and first.get("split", True)) and not _begins_with_spaces(first):
            return None
        strict = True
    makes_blanks = any(part["type"] in _MAKE_BLANKS for part in normalizers)
    for part in normalizers:
        if part["type"] not in _LOCAL_NORMALIZERS:
            if not _keeps_a_space(part, first["type"] == "WhitespaceSplit" or not makes_blanks):
                return None
            strict = True
    for token in tokenizer.get("added_tokens") or ():
        if re.search(r"\s", token["content"]):
            if token["content"].strip() or len(token["content"]) < 2:
                return None
            strict = True  # it is a run of blanks, which a single space is not
    return SPACE_BETWEEN if strict else AFTER_A_WORD


def word_begins(tokenizer: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Places of `word_ends` from which also what follows depends on what stands from there on alone.

    It is so unless what splits the words treats the first one of a text in a way of its own though a space stands
    before it, or a token that was added takes the blanks after it.
    """
    ends, splitters = word_ends(tokenizer), parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if ends is None or not all(part["type"] in _STEADY_SPLITTERS for part in splitters):
        return None
    if any(part.get("prepend_scheme") == "first" for part in splitters):
        return None
    if any(token.get("rstrip") for token in tokenizer.get("added_tokens") or ()):
        return None
    return SPACE_AFTER_A_WORD if ends is AFTER_A_WORD else ends


def parts_of(step: Mapping[str, Any] | None, many: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence of them, however deep; of one step, itself."""
    if step is None:
        return []
    return [part for each in step[many] for part in parts_of(each, many)] if step["type"] == "Sequence" else [step]


def word_ends_in_python(kind: str, normalises: bool, added: Collection[str]) -> re.Pattern[str] | None:
    """Places as `word_begins` for a tokenizer that is a class of Python, of which the content does not tell.

    PhoBERT's and BERTweet's take what stands between blanks, and a line's end into the word before it.

    Args:
        kind: name of its class.
        normalises: whether it changes the text first, as BERTweet's does on request.
        added: tokens that were added.
    """
    known = kind in ("PhobertTokenizer", "BertweetTokenizer") and not normalises
    return SPACE_AFTER_A_WORD if known and not any(re.search(r"\s", token) for token in added) else None


def _begins_with_spaces(splitter: Mapping[str, Any]) -> bool:
    return (
        splitter["type"] == "Split"
        and splitter["pattern"].get("Regex") in _PARTS_BEGIN_WITH_SPACES
        and splitter.get("behavior") == "Isolated"
        and not splitter.get("invert")
    )


def _keeps_a_space(normalizer: Mapping[str, Any], runs: bool) -> bool:
    """Whether a space between two letters stays, and parts what is done on either side.

    Args:
        normalizer: the step.
        runs: runs of blanks may become one.
    """
    if normalizer["type"] == "Precompiled":
        from tokenizers.normalizers import Precompiled

        return bool(Precompiled(base64.b64decode(normalizer["precompiled_charsmap"])).normalize_str("a b") == "a b")
    if normalizer["type"] == "Strip":
        return not normalizer.get("strip_left", True)
    if normalizer["type"] != "Replace":
        return False
    pattern, content = normalizer["pattern"], normalizer["content"]
    if "String" in pattern:
        return not re.search(r"\s", pattern["String"] + content)
    return runs and pattern.get("Regex") in _RUNS_OF_BLANKS and content == " "
