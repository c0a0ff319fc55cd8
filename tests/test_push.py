"""Model cards, and models on the hub: against a stand-in of the hub's server; nothing leaves this machine."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.errors import RunError, UserError
from sdfast.rundir import check_model
from sdfast.sharing.hub import pack_up

LICENSED = "---\nlicense: cc-by-nc-4.0\nbase_model: facebook/vit-mae-base\n---\n# model\n"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    model = write_model(root / "model")
    (model / "README.md").write_text(LICENSED)
    pipe = sdfast.Pipeline(model, write_images(root / "photos", classes=3), root / "out", overrides=FEW_STEPS)
    pipe.run()
    return root / "out"


class Hub(BaseHTTPRequestHandler):
    """What create_repo, model_info and create_commit ask for."""

    repos: dict[str, dict[str, bytes]]
    asked: list[dict[str, Any]]  # of new repositories
    code = 0  # that every commit is answered with, if any

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if name not in self.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": each} for each in self.repos[name]]
        self.answer({"id": name, "sha": "a" * 40, "siblings": files, "private": False, "tags": [], "downloads": 0})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repos:
                return self.answer({"url": f"{huggingface_hub.constants.ENDPOINT}/{name}"}, 409)
            self.repos[name] = {".gitattributes": b""}
            self.asked.append(asked)
            return self.answer({"url": f"{huggingface_hub.constants.ENDPOINT}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            paths = [each["path"] for each in json.loads(body)["files"]]
            files = [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in paths]
            return self.answer({"files": files})
        if self.code:
            return self.answer({"error": "no"}, self.code)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.repos[name][line["value"]["path"]]
        self.answer(
            {
                "success": True,
                "commitOid": "b" * 40,
                "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/{name}/commit/b",
            }
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.repos, Hub.asked, Hub.code = {}, [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=address, token="hf_not_a_token"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_the_hub_in_one_commit(hub: type[Hub], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["push", "--out", str(out), "me/flowers", "--private"]) == 0
    assert "/me/flowers/commit/b" in capsys.readouterr().out
    files = hub.repos["me/flowers"]
    (asked,) = hub.asked
    assert asked.get("visibility") == "private" or asked.get("private") is True
    assert set(check_model(out / "finetune").files) <= set(files)
    assert files["model.safetensors"] == (out / "finetune/model/model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert 'pipeline("image-classification", model="me/flowers")' in card and "FOLDER" not in card


def test_what_lies_there_is_not_lost_unasked(hub: type[Hub], out: Path) -> None:
    hub.repos["me/flowers"] = {".gitattributes": b"", "pytorch_model.bin": b"other", "config.json": b"{}"}
    pipe = sdfast.Pipeline(config=out / "config.yaml")
    with pytest.raises(UserError, match=r"me/flowers holds 3 files already .* give --replace"):
        pipe.push("me/flowers", "distill")
    assert hub.repos["me/flowers"]["config.json"] == b"{}"
    pipe.push("me/flowers", "distill", replace=True)
    files = hub.repos["me/flowers"]
    assert "pytorch_model.bin" not in files and "encoder/model.safetensors" in files
    assert 'AutoModel.from_pretrained("me/flowers", subfolder="encoder")' in files["README.md"].decode()


@pytest.mark.parametrize(
    ("code", "words"), [(401, "log in again"), (403, "may not write"), (412, "meanwhile"), (500, "refused me/flowers")]
)
def test_what_the_hub_refuses_is_one_sentence(code: int, words: str, hub: type[Hub], out: Path) -> None:
    hub.code = code
    with pytest.raises((UserError, RunError), match=words):
        sdfast.Pipeline(config=out / "config.yaml").push("me/flowers")


def test_without_token_network_or_name(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert run(["push", "--out", str(out), "me/flowers"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_not_a_token")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_not_a_token"))
    assert run(["push", "--out", str(out), "me/flowers"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert run(["push", "--out", str(out), "me/flo--wers"]) == 2
    assert "is no name of a repository" in capsys.readouterr().err


def test_a_damaged_or_unfinished_model_is_not_sent(hub: type[Hub], out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    weights = tmp_path / "out" / "finetune" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is not what"):
        pack_up(tmp_path / "out", "finetune", "me/flowers")
    with pytest.raises(UserError, match="did you mean 'distill'"):
        pack_up(tmp_path / "out", "distil", "me/flowers")
    assert hub.repos == {}


def test_a_dry_run_shows_files_and_card(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["push", "--out", str(out), "me/flowers", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "nothing was sent" in said and "## Limits" in said


def test_the_card_is_what_the_hub_reads(out: Path) -> None:
    card = ModelCard.load(out / "finetune" / "model" / "README.md")
    data: Any = card.data
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "facebook/vit-mae-base")
    (accuracy, _) = data.eval_results
    assert accuracy.metric_type == "accuracy" and accuracy.task_type == "image-classification"
    assert accuracy.dataset_split == "test" and accuracy.dataset_args == {"rows": 18}
    stored = check_model(out / "finetune")
    assert accuracy.metric_value == pytest.approx(stored.metrics["accuracy"], abs=1e-3)
    for words in ("train: 36 images", "`class0`, `class1`, `class2`", "finetune.steps: 6", "of the test split"):
        assert words in card.text
    assert "cc-by-nc-4.0, holds" in card.text and "lee2023selfdistillation" in card.text
    assert str(out.parent) not in str(card)


def test_the_card_says_only_what_was_done(tmp_path: Path) -> None:
    """Plain fine-tuning of a model that states no licence, and neighbours, which train nothing."""
    model, data = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    for name, more in (("plain", ()), ("knn", ("finetune.method=knn",))):
        steps = (*FEW_STEPS, "finetune.start=init", *more)
        sdfast.Pipeline(model, data, tmp_path / name, overrides=steps).run()
        card = ModelCard.load(tmp_path / name / "finetune" / "model" / "README.md")
        values: Any = card.data
        assert "`pretrain`: further" not in card.text and "bibtex" not in card.text
        assert "is not stated in its folder" in card.text and values.license is None and values.base_model is None
        assert values.eval_results[0].task_type == "text-classification"
        assert ("no training" in card.text) == (name == "knn")
