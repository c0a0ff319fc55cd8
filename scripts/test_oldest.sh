#!/usr/bin/env bash
# The whole test suite with the oldest versions that sdfast takes (constraints-oldest.txt), in .venv-oldest.
#   scripts/test_oldest.sh             run it
#   scripts/test_oldest.sh --changed   run it unless it has passed with all that bears on versions as it is now
# It runs in a copy of what git knows of this folder, under build/oldest, so that each environment has a build of its own.
# When it passes, .ci/oldest-passed says with what: commit that file.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=build/oldest/sdfast constraints=$PWD/build/oldest/constraints.txt passed=.ci/oldest-passed

# What was installed, what is compiled, and every file that names a version.
state() {
  {
    git ls-files --cached --others --exclude-standard -- 'constraints*.txt' csrc cmake CMakeLists.txt setup.py pyproject.toml Makefile
    git grep --untracked -lE '(torch|[Tt]riton|[Tt]ransformers|[Dd]eep[Ss]peed|pydantic|setuptools|cmake)[ >=]*[0-9]+\.[0-9]+' \
      -- sdfast benchmarks tests ':!*.md' ':!*.json' ':!*.csv'
  } | sort -u | while read -r file; do [ -e "$file" ] && git hash-object "$file" && echo "$file"; done | git hash-object --stdin
}

# The lock with the oldest versions in place of its own. torch pins the CUDA packages that it needs by itself.
lock() {
  awk -F'[=<> ;]' 'FNR == NR { if ($1 !~ /^#/) oldest[$1]; next } !($1 in oldest) && !/^(nvidia|cuda)-/' \
    constraints-oldest.txt constraints.txt
  cat constraints-oldest.txt
}

tested=$(state)
if [ "${1:-}" = --changed ] && [ "$tested" = "$(cat "$passed" 2>/dev/null)" ]; then
  echo "make test-oldest has passed with these versions and this compiled core ($passed)."
  exit 0
fi
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
  tar --null --files-from=- -cf - | tar -xf - -C "$copy"
lock > "$constraints.new"
cmp -s "$constraints.new" "$constraints" || mv "$constraints.new" "$constraints"
rm -f .venv-oldest/.built # the copy has no compiled core yet
env -u MAKELEVEL -u MAKEFLAGS make -C "$copy" VENV="$PWD/.venv-oldest" CONSTRAINTS="$constraints" test
echo "$tested" > "$passed"
