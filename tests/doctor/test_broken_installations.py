"""`sdfast doctor` finds installations that were broken for it, and says nothing against one that works.

Each is broken in truth: packages before the real ones on the path, a damaged copy of sdfast, an environment. The checks
run in processes of their own, as they do for a person; only those that an installation breaks are run for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdfast
from sdfast.doctor.computing import judged_core, judged_cuda, judged_device
from sdfast.doctor.disk import check_disk
from sdfast.doctor.finding import Finding
from sdfast.doctor.meeting import check_meeting
from sdfast.doctor.packages import check_imports, check_versions
from sdfast.doctor.processors import judged_threads
from sdfast.doctor.sandbox import Outcome, in_turn
from sdfast.portable import processors

PACKAGE = Path(sdfast.__file__).parent
SECONDS = 60.0


def package(folder: Path, name: str, code: str = "", version: str = "0.0.1", needs: tuple[str, ...] = ()) -> None:
    """Install a package of this code, which is found before another of its name."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n{code}\n")
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path."""
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def imported(*names: str, seconds: float = SECONDS) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_imports(seconds, names)}


def test_packages_that_raise_crash_hang_or_are_of_other_versions_are_told_apart(first: Path) -> None:
    package(first, "triton", "raise ImportError('libtriton.so: undefined symbol')")
    package(first, "deepspeed", "import os; os.abort()")
    package(first, "peft", "import time; time.sleep(60)")
    package(first, "torchvision", needs=("torch (==1.13.0)",))
    library = "class Wrong(Exception): pass\n_cpp_library_load_exception = Wrong('built for PyTorch 1.13')"
    package(first, "xformers", "from xformers import _cpp_lib")
    (first / "xformers" / "_cpp_lib.py").write_text(library)
    package(first, "timm")  # this one works
    names = ["triton", "deepspeed", "peft", "torchvision", "xformers", "timm"]
    found = imported(*names, seconds=2)
    assert set(found) == set(names)
    assert {name for name in found if not found[name].broken} == {"timm"}
    assert "undefined symbol" in found["triton"].found
    assert "SIGABRT" in found["deepspeed"].found
    assert "hangs" in found["peft"].found
    assert "torch==1.13.0" in found["torchvision"].found and "pip install" in found["torchvision"].todo
    assert "built for PyTorch 1.13" in found["xformers"].found


def test_a_package_of_which_two_versions_lie_about_is_found(first: Path) -> None:
    package(first, "timm", version="0.9.0")
    (first / "timm" / "__init__.py").write_text("__version__ = '1.2.0'\n")
    (finding,) = imported("timm").values()
    assert finding.broken and "1.2.0 is imported" in finding.found and "0.9.0 is installed" in finding.found


def test_transformers_that_are_too_old_are_found(first: Path) -> None:
    package(first, "sdfast", needs=("transformers>=5.17", "deepspeed>=0.19.8; extra == 'deepspeed'"))
    package(first, "transformers", version="4.40.0")
    package(first, "deepspeed", version="0.10.0")
    shutil.rmtree(first / "sdfast")  # its requirements alone
    finding = check_versions()
    assert finding.broken
    assert "transformers>=5.17 (4.40.0 is installed)" in finding.found
    assert "deepspeed>=0.19.8 (0.10.0 is installed)" in finding.found


def test_a_needed_package_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.doctor.packages.installed", lambda name: None)
    found = imported("datasets", "timm")
    assert found["datasets"].broken and found["timm"].state == "not installed"


@pytest.fixture
def copied(first: Path) -> Path:
    """A copy of sdfast, which the processes that are started import."""
    return Path(shutil.copytree(PACKAGE, first / "sdfast", ignore=shutil.ignore_patterns("bundled", "studies")))


@pytest.mark.skipif(not (PACKAGE / "lib" / "libsdfast_cpu.so").is_file(), reason="the compiled core was not built")
def test_a_compiled_core_that_is_cut_and_too_many_threads_are_found(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = processors() + 6
    monkeypatch.setenv("OMP_NUM_THREADS", str(many))
    monkeypatch.setenv("MKL_DYNAMIC", "FALSE")
    library = copied / "lib" / "libsdfast_cpu.so"
    library.write_bytes(library.read_bytes()[:5000])
    found = in_turn(("core", "threads"), SECONDS)  # the process may crash, and others look at the rest
    finding = judged_core(found["core"])
    assert finding.broken and "make build" in finding.todo
    assert "does not load" in finding.found or "crashes" in finding.found
    finding = judged_threads(found["threads"])
    assert finding.broken and f"{many} threads" in finding.found and "OMP_NUM_THREADS=" in finding.todo


@pytest.mark.skipif(not (PACKAGE / "lib" / "libsdfast_cpu.so").is_file(), reason="the compiled core was not built")
def test_a_compiled_core_with_wrong_numbers_is_found(copied: Path) -> None:
    with open(copied / "ops" / "mae_distill" / "fused.py", "a") as file:
        file.write(
            "\n\n_right = native_mae_distill\n"
            "def native_mae_distill(*given, **named):\n"
            "    out = _right(*given, **named)\n"
            "    return out._replace(mae=out.mae * 1.001)\n"
        )
    finding = judged_core(in_turn(("core",), SECONDS)["core"])
    assert finding.broken and "loss by native" in finding.found and "is allowed" in finding.found


def test_a_core_that_is_not_there_is_fine() -> None:
    outcome = Outcome([{"built": {}, "why_not": "the compiled core was not built", "torch": "2.14.1"}])
    assert judged_core(outcome).state == "not installed"


def test_processes_that_cannot_meet_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    (finding,) = check_meeting(SECONDS)
    assert finding.broken and "GLOO_SOCKET_IFNAME" in finding.todo


def test_a_driver_that_is_older_than_the_cuda_of_torch_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.version.cuda is None or shutil.which("cc") is None or torch.cuda.is_available():
        pytest.skip("needs a torch with CUDA, a compiler for a driver, and no GPU")
    code = "int cuInit(unsigned f) { return 100; } int cuDriverGetVersion(int* v) { *v = 11040; return 0; }"
    (tmp_path / "driver.c").write_text(code)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    finding = judged_cuda(in_turn(("cuda",), SECONDS)["cuda"])
    assert finding.broken and "knows none above 11.4" in finding.found and "driver" in finding.todo


def test_an_out_that_is_a_file_or_whose_disk_is_full_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = check_disk(tmp_path / "file" / "run", SECONDS)
    assert finding.broken and "no folder" in finding.found
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); {_DISK}"
    done = subprocess.run([sys.executable, "-c", limited, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "may not grow so large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is left


_DISK = (
    "import sys; from pathlib import Path; from sdfast.doctor.disk import check_disk; "
    "print(*[each.found for each in check_disk(Path(sys.argv[1]), 60.0) if each.broken])"
)


def test_one_that_works_is_not_called_broken(tmp_path: Path, first: Path) -> None:
    """The command itself; optional packages, which take long to import, have others in their place that work."""
    for name in ("timm", "deepspeed", "peft", "xformers", "torchvision"):
        package(first, name, version="99.0")
    command = [sys.executable, "-m", "sdfast", "doctor", "--json", "--out", str(tmp_path / "run")]
    path = os.pathsep.join([str(first), str(PACKAGE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    document = json.loads(done.stdout)
    states = {each["check"]: each["state"] for each in document["checks"]}
    assert document["ok"] is (done.returncode == 0) is ("broken" not in states.values())
    assert done.returncode == 0, [each for each in document["checks"] if each["state"] == "broken"]
    assert {"torch", "compiled core", "numbers on the CPU", "two processes", "threads", "disk", "caches"} <= set(states)
    assert list(tmp_path.iterdir()) == [first]


@pytest.mark.gpu
def test_a_gpu_that_computes_right_is_not_called_broken() -> None:
    assert judged_cuda(in_turn(("cuda",), SECONDS)["cuda"]).state == "ok"
    finding = judged_device("numbers on the GPU", in_turn(("gpu",), SECONDS)["gpu"])
    assert finding.state == "ok", finding.found
