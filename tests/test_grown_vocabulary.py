"""Tokens that are added: to the tokenizer by its user, or by `data.add_tokens`; the model grows with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from text_fixtures import FEW_STEPS, text, write_text_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import sdfast
from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import PretrainedMLM, load_mlm, save_mlm
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.tokenization import load_tokenizer
from sdfast.modalities.texts.vocabulary import wanted_tokens, with_words

NEW = ["covid", "mRNA-1273", "[DRUG]"]
HAD = 45


def grown(folder: Path, **data: object) -> PretrainedMLM:
    return with_words(load_mlm(str(folder)), folder, DataConfig(**data))  # type: ignore[arg-type]


def with_added_tokens(folder: Path, kind: str = "roberta") -> Path:
    """A model's folder whose user has added tokens to the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(write_text_model(folder, kind))
    tokenizer.add_tokens(NEW)
    tokenizer.save_pretrained(folder)
    return folder


def labelled(folder: Path) -> Path:
    folder.mkdir()
    for split, count, first in (("train", 24, 0), ("test", 12, 900)):
        rows = [
            {"text": f"{text(first + number, number % 2)} {NEW[number % 3]} word3", "label": f"class{number % 2}"}
            for number in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
@pytest.mark.parametrize(("how", "rows"), [("user", 48), ("key", 48), ("multiple", 64)])
def test_new_rows_are_the_mean_of_the_old(how: str, rows: int, kind: str, tmp_path: Path) -> None:
    folder = with_added_tokens(tmp_path / "x", kind) if how == "user" else write_text_model(tmp_path / "x", kind)
    loaded = load_mlm(str(folder))
    with torch.no_grad():
        loaded.module.head.bias.normal_()
    save_mlm(loaded.module, folder, loaded.companions, loaded.dropouts)
    before = load_mlm(str(folder))
    given = {} if how == "user" else {"add_tokens": NEW}
    after = grown(folder, **given, **({"vocabulary_multiple": 64} if how == "multiple" else {}))
    assert after.shape.vocabulary == rows and after.digest != before.digest
    assert any(f"it had 45 words and has {rows} now" in note for note in after.notes)
    old, new = before.module.state_dict(), after.module.state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor[: len(old[name])], old[name]), name
        if len(tensor) > len(old[name]):
            mean = old[name].double().mean(0).float()
            assert all(torch.equal(row, mean) for row in tensor[HAD:]), name
    assert grown(folder, **given).digest == grown(folder, **given).digest


def test_the_loss_of_old_words_rises_by_at_most_the_share_of_new_ones(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "x", dropout=0.0)
    before, after = load_mlm(str(folder)).module, grown(folder, vocabulary_multiple=64).module
    batch = TokenBatch(torch.arange(2, 30), torch.tensor([20, 8]))
    old, new = (torch.log_softmax(each.eval().logits(each.encoder(batch)), -1) for each in (before, after))
    rises = old - new[:, :HAD]
    assert (rises > 0).all() and rises.max() <= math.log(64 / HAD) + 1e-6
    torch.testing.assert_close(new[:, HAD:], new[:, :HAD].mean(1, keepdim=True).expand(-1, 19))


def test_what_is_there_already_changes_nothing(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "x")
    before = load_mlm(str(folder))
    for data, said in (({}, 0), ({"add_tokens": ["word3"]}, 1), ({"vocabulary_multiple": 15}, 0)):
        after = grown(folder, **data)
        assert after.digest == before.digest and after.companions == before.companions
        assert after.notes[: len(before.notes)] == before.notes
        assert ["already" in note for note in after.notes[len(before.notes) :]] == [True] * said


def test_a_model_with_rows_to_spare_is_left_as_it_is_but_for_new_tokens(tmp_path: Path) -> None:
    """Rows that no token has may hold anything; those that tokens get become the mean of the words'."""
    folder = tmp_path / "padded"
    wide = grown(write_text_model(tmp_path / "x"), vocabulary_multiple=64)
    with torch.no_grad():
        wide.module.encoder.word_embeddings.weight[HAD:] = 9
    save_mlm(wide.module, folder, wide.companions, wide.dropouts)
    assert grown(folder).digest == load_mlm(str(folder)).digest
    rows = grown(folder, add_tokens=NEW).module.encoder.word_embeddings.weight
    assert (
        torch.equal(rows[HAD : HAD + 3], rows[:HAD].double().mean(0).float().expand(3, -1)) and (rows[48:] == 9).all()
    )


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ("bert", "roberta")])
def test_each_kind_grows(kind: str, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "x", kind, dropout=0.0)
    after = grown(folder, add_tokens=NEW, vocabulary_multiple=8)
    assert after.shape.vocabulary == len(after.module.encoder.word_embeddings.weight) == 48
    save_mlm(after.module, tmp_path / "y", after.companions, after.dropouts, max_length=40)
    theirs, tokenizer = (kind.from_pretrained(tmp_path / "y") for kind in (AutoModelForMaskedLM, AutoTokenizer))
    ids = torch.tensor(tokenizer("word1 covid word2 [DRUG]word3")["input_ids"])
    assert {45, 47} < set(ids.tolist())
    module = after.module.double().eval()
    wanted = theirs.double().eval()(ids[None]).logits[0]
    ours = module.logits(module.encoder(TokenBatch(ids, torch.tensor([len(ids)]))))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-7)  # some norms of transformers compute in float32


@pytest.mark.parametrize("how", ["user", "key"])
def test_from_the_first_stage_to_transformers(how: str, tmp_path: Path) -> None:
    folder = with_added_tokens(tmp_path / "x") if how == "user" else write_text_model(tmp_path / "x")
    data, tokens = labelled(tmp_path / "data"), tmp_path / "tokens.txt"
    tokens.write_text("".join(f"{token}\n" for token in NEW))
    keys = [*FEW_STEPS, *(["data.add_tokens=" + str(tokens), "data.vocabulary_multiple=64"] if how == "key" else [])]
    run = sdfast.Pipeline(model=str(folder), data=str(data), out=str(tmp_path / "run"), device="cpu", overrides=keys)
    result = run.run()
    rows = 64 if how == "key" else 48
    assert result.metrics["accuracy"] >= 0
    train = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    ids = {}
    for stage, kind in (("distill", AutoModelForMaskedLM), ("finetune", AutoModelForSequenceClassification)):
        written = tmp_path / "run" / stage / "model"
        theirs, tokenizer = kind.from_pretrained(written), AutoTokenizer.from_pretrained(written)
        assert theirs.config.vocab_size == rows == len(theirs.get_input_embeddings().weight)
        assert tokenizer.convert_tokens_to_ids(NEW) == [45, 46, 47] and len(tokenizer) == 48
        ids[stage] = tokenizer(train, truncation=True)["input_ids"]
        ours = load_tokenizer(written, 40)
        assert [one.ids.tolist() for one in ours(train) if one] == ids[stage]
        if stage == "distill":
            module = load_mlm(str(written)).module.double().eval()
            batch = TokenBatch(torch.tensor(ids[stage][0]), torch.tensor([len(ids[stage][0])]))
            wanted = theirs.double()(batch.ids[None]).logits[0]
            torch.testing.assert_close(module.logits(module.encoder(batch)), wanted, rtol=0, atol=1e-9)
            assert not torch.equal(module.encoder.word_embeddings.weight[45], module.encoder.word_embeddings.weight[46])
    assert ids["distill"] == ids["finetune"] and {45, 46, 47} <= {number for row in ids["distill"] for number in row}
    again = sdfast.Pipeline(out=str(tmp_path / "run"), device="cpu")
    assert again.evaluate(str(data))["accuracy"] == pytest.approx(result.metrics["accuracy"])


def test_tokens_of_a_list_and_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes("\ufeffone\n\n  two words \r\none\n".encode())
    assert wanted_tokens(str(path)) == ["one", "two words"] == wanted_tokens(("one", " two words", ""))
    assert wanted_tokens(None) == []
    with pytest.raises(UserError, match=r"data.add_tokens cannot be read from .*none.txt"):
        wanted_tokens(str(tmp_path / "none.txt"))
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="is not UTF-8"):
        wanted_tokens(str(path))


def test_words_that_were_not_added_are_another_models(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "x")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["more"] = 45
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"46 words, 1 more than its model, and they are no tokens that were added"):
        grown(folder)
