"""Collect what benchmarks/gpu_suite.py needs on a machine without a network: `python scripts/gpu_parcel.py`.

The folder (`.parcel`, which git ignores) has wheels of the packages that a machine with torch, triton, transformers,
timm and pytest on Python 3.12 lacks, at the lock's versions; the compiled core out of sdfast/lib, which every torch of
the same CUDA major from 2.11 on loads; the commit; and run.sh, which unpacks all that and runs the suite. Take it along
with the checkout, and run there

    bash .parcel/run.sh --call 1 --out DIR
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.12"  # of the machine that the wheels are for
PACKAGES = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
WITH_DEEPSPEED = ("hjson", "msgpack", "py-cpuinfo", "einops")
LIMIT = 64 * 2**20  # bytes; more does not travel everywhere
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

RUN = """\
#!/usr/bin/env bash
# Runs benchmarks/gpu_suite.py with what lies beside this file; the arguments are the suite's.
set -eu
parcel=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${SDFAST_ROOT:-$(dirname "$parcel")}
python=${PYTHON:-python3}
site=${TMPDIR:-/tmp}/gpu-suite-packages-$(id -u)
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \\
  --root-user-action=ignore --upgrade --target "$site" "$parcel"/wheels/*.whl
for file in "$parcel"/lib/*; do
  [ -e "$file" ] || continue
  mkdir -p "$root/sdfast/lib"
  # A new file and never the old one's contents: a process may have that loaded.
  cmp -s "$file" "$root/sdfast/lib/$(basename "$file")" || cp --remove-destination "$file" "$root/sdfast/lib/"
done
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
SDFAST_COMMIT=$(cat "$parcel/commit")
export SDFAST_COMMIT
exec "$python" "$root/benchmarks/gpu_suite.py" "$@"
"""


class ParcelError(SystemExit):
    """Ends the script with one sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(f"gpu_parcel: {what}")


def main() -> None:
    """Make the folder, and say what it needs and how it is used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / ".parcel", metavar="DIR", help="the folder to make")
    parser.add_argument("--deepspeed", action="store_true", help="with a wheel of deepspeed, made here")
    options = parser.parse_args()
    folder = options.out.resolve()
    size = make(folder, options.deepspeed)
    try:
        shown = folder.relative_to(ROOT)
    except ValueError:
        shown = folder
    print(f"{shown}: {size / 2**20:.1f} MiB")
    print(f"there, in the checkout: {command(shown)}")


def command(folder: Path) -> str:
    """What is run on the other machine."""
    return f"bash {folder}/run.sh --call 1 --out DIR"


def make(folder: Path, deepspeed: bool) -> int:
    """Fill the folder anew; its size in bytes.

    Raises:
        ParcelError: something cannot be had, or it becomes too large.
    """
    pins = locked()
    for earlier in ("wheels", "lib"):  # two versions of one package would end the installation
        shutil.rmtree(folder / earlier, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    download([f"{name}=={pins[name]}" for name in (*PACKAGES, *(WITH_DEEPSPEED if deepspeed else ()))], wheels)
    if deepspeed:
        build_deepspeed(pins["deepspeed"], wheels)
    copy_library(ROOT / "sdfast" / "lib", folder / "lib")
    (folder / "commit").write_text(commit() + "\n", encoding="utf-8")
    script = folder / "run.sh"
    script.write_text(RUN, encoding="utf-8")
    script.chmod(0o755)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ParcelError(f"{folder} has {size / 2**20:.0f} MiB, more than the {LIMIT / 2**20:.0f} that can travel.")
    return size


def locked() -> dict[str, str]:
    """{name: version} of the lock's lines that hold for the other machine's Python."""
    pins = {}
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux"}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            pins[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return pins


def pip(*words: str) -> None:
    """This interpreter's pip; what it says is shown."""
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    done = subprocess.run([sys.executable, "-m", "pip", *words], env=environment)
    if done.returncode:
        raise ParcelError(f"`pip {words[0]}` did not end well; its own words are above.")


def download(requirements: list[str], folder: Path) -> None:
    """Wheels for the other machine."""
    where = ["--python-version", PYTHON, "--implementation", "cp", "--abi", f"cp{PYTHON.replace('.', '')}"]
    where += ["--abi", "abi3", "--abi", "none"]
    for platform in PLATFORMS:
        where += ["--platform", platform]
    pip("download", "--quiet", "--no-deps", "--only-binary=:all:", *where, "--dest", str(folder), *requirements)


def build_deepspeed(version: str, folder: Path) -> None:
    """A wheel without compiled operators, out of the source release: it compiles none for the plain ZeRO stages."""
    words = ("--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "deepspeed")
    pip("wheel", *words, "--wheel-dir", str(folder), f"deepspeed=={version}")


def copy_library(source: Path, target: Path) -> None:
    """The compiled core; where it was not built the suite builds it on the other machine."""
    if not (source / "build.json").is_file():
        print("the compiled core was not built here (`make build`): the suite will build it there, which takes time.")
        return
    shutil.copytree(source, target)


def commit() -> str:
    """Of the checkout, with `+` where it is changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
