"""What the shell completes, asked as the scripts of bash and zsh ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdfast.cli import complete
from sdfast.cli.main import run


def completions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """As bash asks, which parts words at `=`."""
    monkeypatch.setenv("_SDFAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(("sdfast", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["tra"], {"train"}),
        (["train", "--pre"], {"--preset"}),
        (["train", "--preset", "pap"], {"paper-vit", "paper-roberta"}),
        (["train", "--preset", "=", "de"], {"demo"}),
        (["train", "--stage", ""], {"pretrain", "distill", "finetune", "all"}),
        (["train", "pretrain.mask_r"], {"pretrain.mask_ratio="}),
        (["train", "--device", "cpu", "pretrain.mask", "=", "b"], {"bernoulli"}),
        (["train", "pretrain.steps", "=", "5", "engine.cuda_graph", "="], {"true", "false"}),
        (["config", "show", "distill.tok"], {"distill.tokens=", "distill.tokens=cls"}),
        (["study", "fig"], {"figure1", "figure3"}),
        (["study", "table3", "--methods", "full-model,with"], {"full-model,without-L_MAE"}),
        (["study", "compare", "--methods", "self-distillation-"], {"self-distillation-all-tokens"}),
    ],
)
def test_bash_is_told_what_may_follow(
    words: list[str], some: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = completions(capsys, monkeypatch, *words)
    assert some <= set(found)
    start = "" if words[-1] == "=" else words[-1]
    assert all(each.startswith(start) for each in found)


def test_run_directories_are_those_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/photos", "runs/old/birds", "here"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.yaml").write_text("")
    Path("runs/empty").mkdir()
    assert complete.run_directories("") == ["runs/old/", "runs/photos", "here", "runs/"]
    assert complete.run_directories("runs/p") == ["runs/photos"]
    assert complete.run_directories("runs/old/") == ["runs/old/birds"]
    assert complete.run_directories("absent/") == []


def test_completing_loads_neither_torch_nor_transformers() -> None:
    """A person waits for it at every press of the key."""
    code = (
        "import sys\nfrom sdfast.cli.main import run\ntry: run([])\n"
        "except SystemExit: print(*({'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)), 'loaded')"
    )
    for words in ("study\nco", "study\ncompare\n--methods\nfi", "train\npretrain.mask", "train\n--out\n"):
        asked = {
            "_SDFAST_COMPLETE": "complete_bash",
            "COMP_WORDS": f"sdfast\n{words}",
            "COMP_CWORD": str(words.count("\n") + 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1].strip() == "loaded", (words, done.stdout)


def test_the_script_for_a_shell_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdfast", "--show-completion", "bash"],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "_SDFAST_COMPLETE=complete_bash" in done.stdout
