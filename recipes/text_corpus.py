"""Make what the bundled masked language model is pre-trained on, and from: `python recipes/text_corpus.py
{corpus,tokenizer,init} ...` (see recipes/README.md)."""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FEWEST_WORDS, MOST_WORDS = 8, 300
SHARED_WORDS = 8  # in a row: a text of the corpus that shares so many with the bundled set is left out
VOCABULARY, POSITIONS = 8_000, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def dictionary_entries(path: Path) -> Iterator[str]:
    """The entries of a dictd dictionary (`.dict.dz`): a line at the margin and the indented ones below it."""
    lines: list[str] = []
    for line in gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore").splitlines():
        if line[:1].strip() and lines:
            yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def gcide_texts(path: Path) -> Iterator[str]:
    r"""The entries of GCIDE without what is from WordNet, pronunciations (`\...\`) and notes of origin ([...])."""
    for entry in dictionary_entries(path):
        if "wordnet" in entry.lower():
            continue
        text = re.sub(r"\\[^\\]*\\", "", entry)
        for _ in range(2):  # brackets may hold brackets
            text = re.sub(r"\[[^\[\]]*\]", "", text)
        yield text


def html_texts(folder: Path) -> Iterator[str]:
    """The paragraphs of the HTML files below a folder, also of those made from DocBook."""
    paragraph = re.compile(r"""<(p|div(?= class="para"))\b[^>]*>(.*?)</\1>""", flags=re.DOTALL)
    for path in sorted(folder.rglob("*.html")):
        for _, text in paragraph.findall(path.read_text(encoding="utf-8")):
            yield html.unescape(re.sub(r"<[^>]+>", "", text))


def cleaned(texts: Iterable[str]) -> Iterator[str]:
    """One line for each text of a useful length; longer ones are cut into several."""
    for text in texts:
        words = re.sub(r"[{}\u200b\xad]", "", text).split()
        for start in range(0, len(words), MOST_WORDS):
            part = words[start : start + MOST_WORDS]
            if len(part) >= FEWEST_WORDS:
                yield " ".join(part)


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """All runs of `SHARED_WORDS` words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)}


def write_corpus(out: Path, gcide: Path, jargon: Path, books: list[Path], target: Path) -> None:
    """A text a line, none twice, none that shares a run of words with the bundled set."""
    forbidden: set[tuple[str, ...]] = set()
    for path in target.glob("*.jsonl.gz"):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            forbidden |= runs_of_words(json.loads(line)["text"])
    sources = {"gcide": gcide_texts(gcide), "jargon": dictionary_entries(jargon)}
    sources |= {book.name: html_texts(book) for book in books}
    seen: set[str] = set()
    with open(out, "w", encoding="utf-8") as file:
        for name, texts in sources.items():
            kept = shared = words = 0
            for text in cleaned(texts):
                if text in seen:
                    continue
                seen.add(text)
                if not forbidden.isdisjoint(runs_of_words(text)):
                    shared += 1
                    continue
                file.write(text + "\n")
                kept, words = kept + 1, words + len(text.split())
            print(
                f"{name}: {kept:,} texts, {words:,} words; {shared:,} left out that the bundled set shares words with"
            )


def train_tokenizer(corpus: Path, out: Path) -> None:
    """An uncased WordPiece tokenizer as a transformers folder."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    backend = BertWordPieceTokenizer(lowercase=True)
    backend.train([str(corpus)], vocab_size=VOCABULARY, min_frequency=5, limit_alphabet=200, special_tokens=SPECIAL)
    tokenizer = BertTokenizerFast(tokenizer_object=backend._tokenizer, model_max_length=POSITIONS)
    tokenizer.save_pretrained(out)


def write_model(tokenizer: Path, out: Path, seed: int) -> None:
    """A randomly initialised `BertForMaskedLM` with the tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=POSITIONS,
        pad_token_id=words.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(out)
    words.save_pretrained(out)


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="write the corpus, a text a line")
    corpus.add_argument("--gcide", type=Path, required=True, help="gcide.dict.dz")
    corpus.add_argument("--jargon", type=Path, required=True, help="jargon.dict.dz")
    corpus.add_argument("--books", type=Path, nargs="*", default=[], help="folders of HTML files")
    corpus.add_argument("--target", type=Path, default=Path("sdfast/bundled/wordnet-glosses"))
    corpus.add_argument("--out", type=Path, default=Path("corpus.txt"))
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer")
    tokenizer.add_argument("corpus", type=Path)
    tokenizer.add_argument("--out", type=Path, default=Path("sdfast/bundled/text-model"))
    init = commands.add_parser("init", help="write a randomly initialised model")
    init.add_argument("--tokenizer", type=Path, default=Path("sdfast/bundled/text-model"))
    init.add_argument("--out", type=Path, default=Path("text-init"))
    init.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "corpus":
        write_corpus(options.out, options.gcide, options.jargon, options.books, options.target)
    elif options.command == "tokenizer":
        train_tokenizer(options.corpus, options.out)
    else:
        write_model(options.tokenizer, options.out, options.seed)


if __name__ == "__main__":
    main()
