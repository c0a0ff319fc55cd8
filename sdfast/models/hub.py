"""From what the user typed as the model to its place on this machine: a folder or file, or a hub id that is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from sdfast.errors import UserError, said

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "bpe.codes",  # PhoBERT, BERTweet
    *SENTENCEPIECE_FILES,  # XLM-R and CamemBERT, ALBERT, DeBERTa, Llama
)
_DESCRIPTION = ["README.md", "config.json", "preprocessor_config.json", *TOKENIZER_FILES]
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_TORCH = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]

_SAVED = ".pth"  # of training scripts, as facebookresearch's


def is_hub_id(spec: str) -> bool:
    """Whether a name has the form of a Hugging Face hub id."""
    return _HUB_ID.fullmatch(spec) is not None


def find_model_folder(spec: str) -> Path:
    """The folder that holds the checkpoint `spec`, or a file of weights that no config.json describes.

    A folder on this machine has precedence over a hub id of the same name. From the hub only the files that sdfast
    reads are fetched: the configuration, the tokenizer's files, and the weights as safetensors or, without those,
    `pytorch_model.bin`, or without a configuration the only `.pth`.

    Args:
        spec: a folder, a file of weights alone, or a Hugging Face hub id such as `facebook/vit-mae-base`.

    Raises:
        UserError: no such folder, a file beside its config.json, or the hub has no such model, or it cannot be
            reached and nothing is cached.
    """
    try:
        path = Path(spec).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            return _bare(path)
    except OSError as error:
        raise UserError(f"the model {spec} cannot be opened: {said(error)}.") from error
    except RuntimeError as error:  # ~ of nobody
        raise UserError(f"there is no model folder {spec}: there is no such home.") from error
    if not is_hub_id(spec):
        raise UserError(
            f"there is no model folder {spec}: give an existing one, or a Hugging Face id like facebook/vit-mae-base."
        )
    return _fetch(spec)


def _bare(path: Path) -> Path:
    """A path that is there and no folder: a file of weights, if no config.json beside it says what they are of."""
    if not path.is_file():
        raise UserError(f"the model {path} is neither a folder nor a file: give the folder of a model.")
    if not (path.parent / "config.json").is_file():
        return path
    wanted = "model.safetensors" if path.suffix == ".safetensors" else "pytorch_model.bin"
    named = path.name == wanted or (path.parent / f"{wanted}.index.json").is_file()
    rename = "" if named else f"name it {wanted} and "
    raise UserError(f"the model {path} is a file with a config.json beside it: {rename}give its folder, {path.parent}.")


def _fetch(hub_id: str) -> Path:
    try:
        from huggingface_hub import list_repo_files, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError as error:
        raise UserError(
            f"there is no folder {hub_id}, and fetching it from the Hugging Face hub needs "
            "`pip install huggingface_hub`."
        ) from error
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_DESCRIPTION + _SAFETENSORS))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=_DESCRIPTION + _TORCH))
        if not any(any(folder.glob(name)) for name in ("config.json", "pytorch_model*.bin", f"*{_SAVED}")):
            saved = [name for name in list_repo_files(hub_id) if name.endswith(_SAVED) and "/" not in name]
            if len(saved) > 1:
                raise UserError(
                    f"the model {hub_id} is several files of weights ({', '.join(sorted(saved)[:4])}): download the one"
                    " that is meant, and give that file."
                )
            folder = Path(snapshot_download(hub_id, allow_patterns=saved)) if saved else folder
        return folder
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"the model {hub_id} is gated: accept its terms on huggingface.co and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {hub_id} and no such model on the Hugging Face hub (if it is private, log in with "
            "`hf auth login`)."
        ) from error
    except Exception as error:  # no network, time-out, broken proxy, full disk: the hub raises many kinds
        raise UserError(
            f"there is no folder {hub_id}, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}): check the network, or give a folder on this machine."
        ) from error
