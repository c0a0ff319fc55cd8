"""Whether packages can be imported, and are of versions that fit each other."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata

from sdfast.doctor.finding import Finding, absent, broken, ok
from sdfast.doctor.sandbox import Outcome, tried

NEEDED = ("torch", "transformers", "tokenizers", "datasets", "safetensors")
OPTIONAL = ("torchvision", "triton", "xformers", "deepspeed", "timm", "peft")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")  # in a marker
_CRASHED = "install it again (`pip install --force-reinstall --no-deps {name}`), or remove it if nothing needs it."


def installed(name: str) -> str | None:
    """The version of a package, by what was installed; None where it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required(name: str) -> list[str]:
    """What a package says that it needs, as `torch>=2.11`; nothing where it is not installed."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def misfits(
    requirements: Iterable[str], version: Callable[[str], str | None] = installed, extras: bool = False
) -> list[str]:
    """Requirements that what is installed does not meet, as "torch>=2.11 (2.9.0 is installed)".

    Args:
        requirements: as `required` gives them; what is not installed is left to its import.
        version: of an installed package.
        extras: whether those of extras hold too.
    """
    from packaging.requirements import Requirement

    found = {}
    for text in requirements:
        each = Requirement(text)
        names = ["", *_EXTRA.findall(text)] if extras else [""]
        there = version(each.name)
        if there is None or not any(each.marker is None or each.marker.evaluate({"extra": name}) for name in names):
            continue
        if not each.specifier.contains(there, prereleases=True):
            found[f"{each.name}{each.specifier}"] = f"{each.name}{each.specifier} ({there} is installed)"
    return list(found.values())


def check_versions(
    version: Callable[[str], str | None] = installed, requirements: Callable[[str], list[str]] = required
) -> Finding:
    """Python, and the packages that sdfast itself asks for, the optional ones too."""
    check = "versions"
    here = f"python {platform.python_version()}, torch {version('torch') or 'not installed'}"
    own = requirements("sdfast")
    if not own:
        return ok(check, f"{here}; sdfast is on the path and not installed, so its requirements are not known")
    wrong = misfits(own, version, extras=True)
    if wrong:
        wanted = " ".join(f"'{each.split(' (')[0]}'" for each in wrong)
        return broken(check, f"sdfast needs {', '.join(wrong)}", f"run `pip install {wanted}`.")
    return ok(check, f"{here}, {len(own)} requirements met")


def check_imports(seconds: float, names: Sequence[str] = (*NEEDED, *OPTIONAL)) -> Iterator[Finding]:
    """Import each package that is installed, in a process that may crash or hang at one and then goes on behind it."""
    there = []
    for name in names:
        if installed(name) is not None:
            there.append(name)
        elif name in NEEDED:
            yield broken(name, "not installed, and sdfast needs it", f"run `pip install {name}`.")
        else:
            yield absent(name)
    while there:
        outcome = tried("imports", *there, seconds=seconds)
        known = {answer["name"]: answer for answer in outcome.answers}
        yield from (_judged(name, known[name], outcome) for name in there if name in known)
        left = [name for name in there if name not in known]
        if len(left) == len(there):  # not one was begun
            yield broken("imports", f"Python {outcome.ended}", "install sdfast again in a new environment.")
            return
        there = left


def _judged(name: str, answer: dict[str, str | None], outcome: Outcome) -> Finding:
    version = installed(name)
    again = _CRASHED.format(name=name)
    if "place" not in answer and "why" not in answer:
        return broken(name, f"{version}: its import {outcome.ended}", again)
    if (why := answer.get("why")) is not None:
        return broken(name, f"{version}: {why}", again)
    if wrong := misfits(required(name)):
        wanted = " ".join(f"'{each.split(' (')[0]}'" for each in wrong)
        return broken(
            name,
            f"{version} was made for {', '.join(wrong)}",
            f"run `pip install --upgrade {name}`, or `pip install {wanted}` for what it was made for.",
        )
    if (own := answer.get("version")) and version and _release(own) != _release(version):
        return broken(
            name,
            f"{own} is imported from {answer['place']}, but {version} is installed",
            f"remove one of the two: `pip uninstall {name}`, then install it again.",
        )
    note = f"; {answer['note']}" if answer.get("note") else ""
    return ok(name, f"{answer.get('version') or version}{note}")


def _release(version: str) -> tuple[int, ...]:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version).release
    except InvalidVersion:
        return ()
