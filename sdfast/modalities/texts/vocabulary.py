"""A vocabulary that grows: tokens that are added to a model's tokenizer, and rows for them in the model.

Nothing is drawn: a new row of the embeddings is the mean of the old ones (transformers' `resize_token_embeddings` draws
around it), and so is its bias in the language-model head. A new word's logit is then the mean of the old words' logits
wherever it is asked for, so its probability is their geometric mean and at most one in V; the loss of a word that was
there rises by at most log(1 + k / V) with k new rows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sdfast.data.config import DataConfig
from sdfast.errors import UserError, said
from sdfast.modalities.texts.checkpoint import Companions, PretrainedMLM
from sdfast.modalities.texts.tokenization import UNBOUNDED, load_tokenizer
from sdfast.modalities.texts.word_ends import parts_of
from sdfast.models.hub import TOKENIZER_FILES
from sdfast.models.weights import filled, weights_digest

_OF_WORDS = ("encoder.word_embeddings.weight", "head.weight", "head.bias")  # tensors with a row for each word
_ROWS = 1 << 13  # of the embeddings in float64 at a time


def with_words(loaded: PretrainedMLM, folder: Path, data: DataConfig) -> PretrainedMLM:
    """A model with its tokenizer and a row for every token of it, after `data.add_tokens` were added to that.

    Args:
        loaded: the model as it is in its folder.
        folder: that folder.
        data: the section of the configuration.

    Returns:
        `loaded` with its `tokenizer`; where it has not all of these rows, a new model whose notes say what was added.

    Raises:
        UserError: the tokenizer has words of its own that the model has not, or the tokens cannot be added.
    """
    tokenizer, tokens, notes = load_tokenizer(folder, UNBOUNDED), wanted_tokens(data.add_tokens), []
    first = had = loaded.shape.vocabulary
    if (own := tokenizer.own_words) > had:
        raise UserError(
            f"the tokenizer in {folder} has {own:,} words, {own - had:,} more than its model, and they are no tokens"
            " that were added to it: the two do not belong together; if they do, call"
            " model.resize_token_embeddings(len(tokenizer)) of transformers and save both there."
        )
    if new := [token for token in tokens if not tokenizer.has_word(token)]:
        first = min(had, tokenizer.tokenization.vocabulary)
        loaded = replace(loaded, companions=with_tokens(loaded.companions, new))
        with folder_of(loaded.companions) as grown:
            tokenizer = load_tokenizer(grown, UNBOUNDED)
        notes.append(f"{len(new):,} of {len(tokens):,} tokens were new to the tokenizer and added (data.add_tokens).")
    elif tokens:
        notes.append(
            f"of the {len(tokens):,} tokens of data.add_tokens the tokenizer has every one already: nothing was added."
        )
    count = tokenizer.tokenization.vocabulary
    rows = max(had, count)
    rows = -(-rows // (multiple := data.vocabulary_multiple or 1)) * multiple
    if rows == had and first >= count:
        return replace(loaded, tokenizer=tokenizer, notes=[*loaded.notes, *notes])
    if rows > had:
        why = f", a multiple of {multiple} (data.vocabulary_multiple)" if rows > max(had, count) else ""
        notes.append(
            f"it had {had:,} words and has {rows:,} now{why}, for the {count:,} of the tokenizer; embedding and bias of"
            " a new one are the means of the old ones."
        )
    state = {
        name: _grown(tensor, first, count, rows) if name in _OF_WORDS else tensor
        for name, tensor in loaded.module.state_dict().items()
    }
    shape = replace(loaded.shape, vocabulary=rows)
    module = filled(type(loaded.module), state, shape, loaded.dropouts)
    made = {"module": module, "shape": shape, "digest": weights_digest(module), "tokenizer": tokenizer}
    return replace(loaded, **made, notes=[*loaded.notes, *notes])


def _grown(tensor: Tensor, first: int, count: int, rows: int) -> Tensor:
    """A tensor with `rows` rows, those from `first` to `count` - 1 and those that it had not the mean of the first."""
    total = sum(block.double().sum(0) for block in tensor[:first].split(_ROWS))
    mean = torch.as_tensor(total / first).to(tensor)
    grown = torch.cat((tensor, mean.expand(rows - len(tensor), *tensor.shape[1:])))
    grown[first:count] = mean
    return grown


def wanted_tokens(given: str | Sequence[str] | None) -> list[str]:
    """The tokens of `data.add_tokens`: a list, or the lines of a file; each once, in their order.

    Raises:
        UserError: the file cannot be read.
    """
    if isinstance(given, str):
        try:
            given = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(
                f"the tokens of data.add_tokens cannot be read from {given} ({said(error)}); give a file with one a"
                " line, or a list, data.add_tokens=[one,other]."
            ) from error
        except UnicodeError as error:
            raise UserError(f"{given}, the file of data.add_tokens, is not UTF-8; save it so.") from error
    return list(dict.fromkeys(token for each in given or () if (token := each.strip())))


def with_tokens(companions: Companions, tokens: Sequence[str]) -> Companions:
    """What lies beside a model, its tokenizer with further tokens, as transformers' `add_tokens` adds them.

    One of letters and digits at both ends is met as a whole word only (`single_word`), and with byte-level BPE takes
    the space before it, which would be a token of its own.

    Raises:
        UserError: the tokenizer does not take them.
    """
    from transformers import AddedToken, AutoTokenizer

    with folder_of(companions) as folder, TemporaryDirectory() as written:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
        spaced = any(part["type"] == "ByteLevel" for part in parts_of(content.get("pre_tokenizer"), "pretokenizers"))
        words = {token: token[0].isalnum() and token[-1].isalnum() for token in tokens}
        tokenizer.add_tokens(
            [AddedToken(token, single_word=word, lstrip=word and spaced) for token, word in words.items()]
        )
        tokenizer.save_pretrained(written)
        found = {path.name: path.read_bytes() for path in Path(written).iterdir() if path.name in TOKENIZER_FILES}
    # of a tokenizer in Python only what was added differs, and not every class writes its own files as it reads them
    kept = {name for name in type(tokenizer).vocab_files_names.values() if name != "tokenizer.json"}
    found |= {name: content for name, content in companions.tokenizer.items() if name in kept}
    grown = replace(companions, tokenizer=found)
    with folder_of(grown) as folder:
        vocabulary = load_tokenizer(folder).vocabulary
    if vocabulary != tokenizer.get_vocab():
        raise UserError(
            f"{type(tokenizer).__name__} loses tokens that are added to it; leave data.add_tokens away, or give a model"
            " that has a tokenizer.json."
        )
    return grown


@contextlib.contextmanager
def folder_of(companions: Companions) -> Iterator[Path]:
    """A folder for a while with a model's configuration and tokenizer, as transformers looks for them."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        config: dict[str, Any] = dict(companions.config)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file, content in companions.tokenizer.items():
            (folder / file).write_bytes(content)
        yield folder
