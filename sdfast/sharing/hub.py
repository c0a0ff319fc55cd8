"""A stage's model on the Hugging Face hub, with its card, in one commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast import __version__
from sdfast.durable import recover_directory
from sdfast.errors import RunError, UserError, nearest
from sdfast.log import log
from sdfast.occupant import Occupant
from sdfast.rundir import RESULT, check_model
from sdfast.sharing.forms import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CARD = "README.md"
_EMPTY = {".gitattributes", _CARD}  # what a new repository has


@dataclass(frozen=True)
class Parcel:
    """What is uploaded.

    Attributes:
        repo_id: where to: `user/name`, or a name in one's own account.
        folder: of the model.
        sizes: bytes of each file by its name in the folder; the files that the stage wrote, and no other.
        card: the text of its README.md, in which the folder is called by its id on the hub.
        message: of the commit.
    """

    repo_id: str
    folder: Path
    sizes: dict[str, int]
    card: str
    message: str


def pack_up(out: Path, stage: str, repo_id: str) -> Parcel:
    """Look at a stage's model as it would be uploaded; nothing is sent.

    Args:
        out: the run directory.
        stage: folder of the stage, such as `finetune`.
        repo_id: where it is to go.

    Raises:
        UserError: the id is none, or the stage has not ended, or its model is not as it was written.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id!r} is no name of a repository: {first_line(error)}; use one as user/name."
        ) from error
    directory = out / stage
    recover_directory(directory / "model")
    if not (directory / RESULT).exists():
        there = Occupant.of(out)
        names = [] if there is None else list(there.stages)
        otherwise = "run `sdfast train` with this --out first"
        if stage in names:
            help_ = "finish it with `sdfast train`, or write its newest checkpoint with `sdfast export`."
        else:
            help_ = nearest(stage, names, otherwise)
        raise UserError(f"{directory} holds no finished model; {help_}")
    stored = check_model(directory)
    folder = directory / "model"
    sizes = {name: (folder / name).stat().st_size for name in sorted(stored.files)}
    card = _at_home((folder / _CARD).read_text("utf-8"), repo_id) if _CARD in sizes else ""
    message = f"{stage} by sdfast {__version__}, {stored.steps:,} steps (weights {stored.weights[:12]})"
    return Parcel(repo_id, folder, sizes, card, message)


def send(parcel: Parcel, private: bool | None = None, revision: str | None = None, replace: bool = False) -> str:
    """Make the repository where it is not there, and upload everything in one commit.

    Args:
        parcel: what.
        private: whether a new repository is private; None leaves it to the hub, which makes it public unless the
            organisation's default is private.
        revision: branch, made where it is not there; the main one when None.
        replace: take the place of files that are there, which stay in the repository's history.

    Returns:
        The address of the commit.

    Raises:
        UserError: there is no token, it does not allow this, or the repository holds files already.
        RunError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise UserError("there is no token of the Hugging Face hub here; log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    try:
        repo_id = api.create_repo(parcel.repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        parent, there = _contents(api, repo_id, revision)
        if there - _EMPTY and not replace:
            raise UserError(
                f"{repo_id} holds {len(there)} files already ({', '.join(sorted(there)[:3])}, ...); give --replace to"
                " put this model in their place (they stay in its history), --revision for a branch, or another name."
            )
        size = sum(parcel.sizes.values()) / 1e6
        log.info("push: %d files, %.1f MB to %s", len(parcel.sizes), size, repo_id)
        operations: list[Any] = [
            CommitOperationAdd(name, parcel.card.encode() if name == _CARD else str(parcel.folder / name))
            for name in parcel.sizes
        ]
        gone = sorted(there - set(parcel.sizes) - _EMPTY)
        operations += [CommitOperationDelete(name) for name in gone]
        made = api.create_commit(
            repo_id, operations, commit_message=parcel.message, revision=revision, parent_commit=parent
        )
        return str(made.commit_url)
    except HfHubHTTPError as error:
        raise _refused(parcel.repo_id, error) from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise RunError(f"{parcel.repo_id} could not be uploaded ({kind}: {first_line(error)}).") from error
    except Exception as error:  # no network, time-out, broken proxy: the hub's client raises many kinds
        kind = type(error).__name__
        raise RunError(f"the Hugging Face hub cannot be reached ({kind}): check the network.") from error


def _contents(api: HfApi, repo_id: str, revision: str | None) -> tuple[str | None, set[str]]:
    """The newest commit of a branch, and the names of its files."""
    found = api.model_info(repo_id, revision=revision)
    return found.sha, {each.rfilename for each in found.siblings or ()}


def _refused(repo_id: str, error: Any) -> UserError | RunError:
    """The sentence on what the hub answered."""
    code = getattr(error.response, "status_code", None)
    if code == 401:
        return UserError("the Hugging Face hub does not know this token; log in again with `hf auth login`.")
    if code in (403, 404):
        return UserError(f"this token may not write to {repo_id}; use one with the right to write, or another name.")
    if code in (409, 412):
        return UserError(f"{repo_id} was changed by somebody meanwhile, and nothing was uploaded; run this again.")
    words = first_line(Exception(getattr(error, "server_message", None) or str(error)))
    return RunError(f"the Hugging Face hub refused {repo_id}: {words}.")


def _at_home(card: str, repo_id: str) -> str:
    """A card in which the model is loaded by its id."""
    card = re.sub(r'"FOLDER/(encoder)"', rf'"{repo_id}", subfolder="\1"', card)
    card = card.replace('"FOLDER"', f'"{repo_id}"').replace("--model FOLDER", f"--model {repo_id}")
    return card if card.count("FOLDER") > 1 else card.replace(" `FOLDER` is where this file lies.", "")
