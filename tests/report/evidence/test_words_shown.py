"""Hidden words and guesses, and features after each block of the encoders of texts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from text_fixtures import WORDS, text, write_text_model
from torch import Tensor

from sdfast import bundled
from sdfast.modalities.texts.batch import TokenBatch, starts
from sdfast.modalities.texts.checkpoint import load_mlm
from sdfast.modalities.texts.shown import MaskedWords, Reader, beginning, layer_features, printable
from sdfast.modalities.texts.tokenization import load_tokenizer

KINDS = ["roberta", "bert", "electra", "distilbert", "modernbert", "eurobert"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_text_model(tmp_path_factory.mktemp("models") / kind, kind) for kind in KINDS}


def hidden_words(folder: Path) -> tuple[MaskedWords, list[list[int]]]:
    tokenizer = load_tokenizer(folder)
    texts = [found.ids.tolist() for found in tokenizer([text(number, 0) for number in range(4)]) if found is not None]
    how = tokenizer.tokenization
    assert how.mask_id is not None
    return MaskedWords(texts, Reader(tokenizer, how), how.mask_id, 5, 0.3), texts


@pytest.mark.parametrize("kind", KINDS)
def test_the_probability_is_the_softmax_of_the_models_logits(kind: str, folders: dict[str, Path]) -> None:
    examples, texts = hidden_words(folders[kind])
    module = load_mlm(str(folders[kind])).module.eval()
    with torch.inference_mode():
        found = examples.filled(module, given=False)["guesses"]
        for each, guess in zip(examples.hidden, found, strict=True):
            ids = torch.tensor(examples.masked[each.text])
            encoded = module.encoder(TokenBatch(ids, torch.tensor([len(ids)])))
            shares = module.logits(encoded)[each.place].double().softmax(0)
            assert guess["probability"] == pytest.approx(float(shares[each.number]), rel=1e-4)
            assert guess["rank"] == 1 + int((shares > shares[each.number]).sum())
            best = shares.topk(5)
            assert [p for _, p in guess["top"]] == pytest.approx(best.values.tolist(), rel=1e-4)
            right = [*best.indices.tolist()].index(each.number) if each.number in best.indices else None
            assert guess["right"] == right
    assert {each.text for each in examples.hidden} == set(range(len(texts)))
    assert all(texts[each.text][each.place] == each.number for each in examples.hidden)


def test_the_passage_reads_as_the_text_did(folders: dict[str, Path]) -> None:
    examples, texts = hidden_words(folders["bert"])
    for number, row in enumerate(examples.shown()):
        words = " ".join(part["text"] for part in row["parts"]).removesuffix(" \N{HORIZONTAL ELLIPSIS}").split()
        assert words == text(number, 0).split()[: len(words)]
        assert len(words) == min(47, len(texts[number]) - 2)  # 48 tokens, of which one is special; or both ends
        masked = [part["text"] for part in row["parts"] if "masked" in part]
        assert 1 <= len(masked) <= 3 and set(masked) <= set(WORDS)


def test_only_whole_words_of_one_token_are_hidden() -> None:
    """Of word pieces neither a beginning nor an end is hidden, and a guess of a part begins with dots."""
    tokenizer = load_tokenizer(bundled.model_folder("bundled-text"))
    reader = Reader(tokenizer, tokenizer.tokenization)
    (found,) = tokenizer(
        ["unbelievabilities of antidisestablishmentarianism are a b c, it seems; electroencephalography"]
    )
    assert found is not None and reader.words is not None
    ids = found.ids.tolist()
    for seed in range(20):
        for each in MaskedWords([ids], reader, 4, seed, 0.5).hidden:
            assert not reader.continues(ids, each.place) and not reader.continues(ids, each.place + 1)
            assert reader.token(each.number).isalnum()
    part = next(each for each in ids if reader.words[each, 0])
    assert reader.token(part).startswith("\N{HORIZONTAL ELLIPSIS}") and "#" not in reader.token(part)


def test_the_choice_depends_on_the_seed_and_the_text_alone(folders: dict[str, Path]) -> None:
    one, _ = hidden_words(folders["bert"])
    other, _ = hidden_words(folders["bert"])
    assert one.hidden == other.hidden


def test_what_does_not_print_is_not_shown() -> None:
    assert printable("a\x00b\nc\ud800") == "a\N{REPLACEMENT CHARACTER}b c\N{REPLACEMENT CHARACTER}"


def test_a_beginning_has_no_special_tokens(folders: dict[str, Path]) -> None:
    examples, texts = hidden_words(folders["roberta"])
    longest = max(texts, key=len)
    shown = beginning(examples.reader, longest)
    assert "<" not in shown and shown.split()[0] in WORDS


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_every_block_are_those_of_the_encoder(kind: str, folders: dict[str, Path]) -> None:
    module = load_mlm(str(folders[kind])).module.eval()
    _, texts = hidden_words(folders[kind])
    whole = TokenBatch(torch.tensor([*chain(*texts)]), torch.tensor([len(each) for each in texts]))

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        picked = [texts[row] for row in rows.tolist()]
        return torch.tensor([*chain(*picked)]), torch.tensor([len(each) for each in picked])

    rows = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        found, what = layer_features(module.encoder, read, rows, whole.lengths[rows])
        first = module.encoder(whole, layer=1)
        how = module.shape.pre_norm
        if how is None or how.pooling == "cls":
            expected = [first[starts(whole.lengths)], module.encoder.features(whole, "cls")]
        else:
            last = module.encoder(whole)
            expected = [torch.stack([each.mean(0) for each in x.split(whole.lengths.tolist())]) for x in (first, last)]
        for layer, wanted in zip((0, -1), expected, strict=True):
            torch.testing.assert_close(found[layer], wanted[rows], rtol=1e-4, atol=1e-5)
    assert what == ("first token" if how is None or how.pooling == "cls" else "mean of the tokens")
