"""Writes docs/architectures.md from the registered architectures, docs/architectures.toml and docs/options.toml.

    python docs/make_architectures.py                  writes the page; a minute or two, as every network is traced
    python docs/make_architectures.py --only unet ...  traces these anew and keeps the other figures of the page
    python docs/make_architectures.py --check          exits 1 where the page is out of date

Names, sources, options, recipes and sizes are read from the networks, pictures and counts by running and building them
without weights (`data_flow`); family, published size, advice and what options mean come from the TOML files.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import data_flow

from autoseg.architecture import Architecture
from autoseg.plans import NetworkSpec
from autoseg.plugins import Found, list_plugins, load

HERE = Path(__file__).resolve().parent
PAGE = HERE / "architectures.md"
MOST = {2: 512, 3: 320}  # channels, nnU-Net's
PATCH = {2: (224, 224), 3: (128, 128, 128)}
STAGES = 6
MEASURED = "On the plans above:"  # begins the paragraph of a section that needs the network to be built
INTRODUCTION = """# Architectures

Written by `python docs/make_architectures.py` from the registered networks, `docs/architectures.toml` and
`docs/options.toml`; do not edit.

Every network is one file in `architectures/`, takes its size from the plan, and is chosen by name:
`plan-and-preprocess DATASET --architecture NAME --network-option OPTION=VALUE`. What of the plan it takes, and where it
deviates from its paper, is at the top of its file. Speed, memory and Dice as measured here are in
[benchmarks/RESULTS.md](../benchmarks/RESULTS.md); `autoseg benchmark` compares networks on your own data.

**Parameters** are counted on two plans by nnU-Net's rules, both with one channel, three outputs and six stages that
halve every axis: 2D, patches of 224 x 224, 32 to 512 channels; 3D, patches of 128 x 128 x 128, 32 to 320 channels.
"Published" is the authors' own configuration, which the section sets beside ours.

**Pictures** show the network on the 2D plan (3D where there is no 2D form) as it trains with deep supervision, traced
by running it. One line per resolution, high to low: channels of the map that the encoder hands on, and the blocks
(classes in the code) that work there; the operations in which it first meets maps of other resolutions; channels and
blocks of the decoder; channels of the outputs. `up`: the map goes on to higher resolutions only. `(no skip)`: the
decoder does not look at it. Where the encoder has blocks but no channels, it hands nothing on.

**Options** stand with their defaults; `none` leaves a choice to the plan, or something out.

**When** is advice, not measurement; scores in it are the authors' or other publications' and say so."""


@dataclass(frozen=True)
class Measured:
    """What is known only of a built network: parameters per dimensions, and the paragraphs of its section."""

    counts: Mapping[int, int]
    paragraphs: tuple[str, ...]


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="trace these, keep the other figures of the page")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    names, known = {found.name for found in registered()}, authored().keys() - {"families"}
    if names != known:
        sys.exit(f"docs/architectures.toml: missing or too many: {', '.join(sorted(names ^ known))}")
    old = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    kept = {} if options.only is None else {name: found for name, found in figures(old).items() if name in names}
    anew = names - kept.keys() | {*(options.only or ())}
    text = page(kept | {found.name: measure(class_of(found)) for found in registered() if found.name in anew})
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
    elif old != text:
        sys.exit("docs/architectures.md is out of date: run python docs/make_architectures.py")


@cache
def registered() -> list[Found]:
    """Return the architectures that come with autoseg."""
    folder = HERE.parent / "architectures"
    return [found for found in list_plugins("architecture") if found.path.resolve().is_relative_to(folder)]


def authored() -> dict[str, Any]:
    """Return the TOML file."""
    return tomllib.loads((HERE / "architectures.toml").read_text(encoding="utf-8"))


def example_plan(dims: int) -> NetworkSpec:
    """Return the plan that parameters are counted on, before the architecture adapts it."""
    return NetworkSpec(
        dims=dims,  # type: ignore[arg-type]
        in_channels=1,
        num_outputs=3,
        patch_size=PATCH[dims],
        strides=((1,) * dims, *((2,) * dims,) * (STAGES - 1)),
        kernel_sizes=((3,) * dims,) * STAGES,
        features=tuple(min(32 * 2**stage, MOST[dims]) for stage in range(STAGES)),
        blocks_encoder=(2,) * STAGES,
        blocks_decoder=(2,) * (STAGES - 1),
    )


def measure(architecture: type[Architecture]) -> Measured:
    """Return counts and picture of an architecture on the example plans."""
    specs = {dims: architecture.adapt_spec(example_plan(dims)) for dims in architecture.dims}
    networks = {dims: data_flow.build(architecture, spec) for dims, spec in sorted(specs.items())}
    counts = {dims: data_flow.weights(network) for dims, (network, _) in networks.items()}
    sizes = "; ".join(
        f"{dims}D {count:_} parameters, patches of multiples of "
        + data_flow.shape(architecture.patch_multiple(specs[dims]))
        for dims, count in counts.items()
    ).replace("_", " ")
    picture = data_flow.draw(*networks[min(networks)])
    return Measured(counts, (f"{MEASURED} {sizes}.", f"```text\n{picture}\n```"))


def figures(text: str) -> dict[str, Measured]:
    """Return what a written page holds."""
    found = {}
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        paragraphs = tuple(re.findall(rf"^{MEASURED}[^\n]*$|^```text\n.*?^```$", part, re.MULTILINE | re.DOTALL))
        counts = re.findall(r"(\d)D ([\d ]+) parameters", paragraphs[0]) if paragraphs else []
        if counts:
            sizes = {int(dims): int(count.replace(" ", "")) for dims, count in counts}
            found[part.partition("\n")[0]] = Measured(sizes, paragraphs)
    return found


def page(measured: Mapping[str, Measured]) -> str:
    """Return the page; networks that are not in `measured` have no figures."""
    texts = authored()
    names = [found.name for found in registered()]
    names.sort(key=lambda name: (texts["families"].index(texts[name]["family"]), name))
    places = {found.name: found for found in registered()}
    parts = [INTRODUCTION, table(names, places, texts, measured)]
    for family in texts["families"]:
        parts.append(f"## {family[0].upper()}{family[1:]}")
        parts += [
            section(places[name], texts[name], measured.get(name)) for name in names if texts[name]["family"] == family
        ]
    return "\n\n".join(parts) + "\n"


def table(
    names: list[str], places: Mapping[str, Found], texts: Mapping[str, Any], measured: Mapping[str, Measured]
) -> str:
    """Return the summary, sorted by family; the last two columns need the networks to be built."""
    lines = ["| name | what it is | family | dimensions | published | 2D | 3D |", f"| {'--- | ' * 5}---: | ---: |"]
    for name in names:
        known = measured.get(name)
        counts = [millions(known.counts[dims]) if known and dims in known.counts else "" for dims in (2, 3)]
        cells = [
            f"[{name}](#{name})",
            places[name].summary.partition(": ")[2],
            texts[name]["family"],
            dimensions(class_of(places[name])),
            texts[name]["published"],
            *counts,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(found: Found, text: Mapping[str, str], known: Measured | None) -> str:
    """Return the section of one architecture."""
    architecture, words = class_of(found), docstring(found.path)
    extra = re.search(r"autoseg-engine\[(\w+)\]", words)
    recipe, beyond = (
        ", ".join(f"`{key}={value}`" for key, value in settings.items())
        for settings in (architecture.recipe, architecture.as_published)
    )
    facts = [
        f"- Source: {source_of(words)} File: [{found.path.name}](../architectures/{found.path.name})",
        f"- Dimensions: {dimensions(architecture)}",
        f"- Recipe: {recipe or 'none of its own: the plan decides'}",
        *([f"- As published only (`--set own_recipe=published`): {beyond}"] if beyond else []),
        f"- Options: {options_of(architecture)}",
        *(f"    - `{name}`: {meaning}" for name, meaning in meanings(found, architecture).items()),
    ]
    if extra:
        facts.append(f'- Needs: `pip install "autoseg-engine[{extra[1]}]"`')
    parts = [f"### {found.name}", found.summary, f"**When.** {text['when']}", "\n".join(facts)]
    if said := paragraph(words, r"Options?(?: size)?:? ", r"(?<=\.) (?:Recipe|Published|Optimiser|Losses|Dilations)|$"):
        parts.append(f"More on options: {said}")
    parts.append(
        f"Published parameters: {text['published']}. {paragraph(words, 'Parameters,? ', '$', keep=True)}".strip()
    )
    measured = list(known.paragraphs) if known else []
    if "flow" in text:  # what the classes in the picture do not show
        measured.insert(1, f"In one line: {text['flow']}.")
    return "\n\n".join([*parts, *measured])


def options_of(architecture: type[Architecture]) -> str:
    """Return the options with defaults and choices."""

    def shown(value: Any) -> str:
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    entries = []
    for name, default in architecture.defaults.items():
        others = [shown(choice) for choice in architecture.choices.get(name, ()) if choice != default]
        entries.append(f"`{name}={shown(default)}`" + (f" (or {', '.join(others)})" if others else ""))
    return ", ".join(entries) or "none"


@cache
def option_texts() -> dict[str, dict[str, str]]:
    """Return docs/options.toml."""
    return tomllib.loads((HERE / "options.toml").read_text(encoding="utf-8"))


def meanings(found: Found, architecture: type[Architecture]) -> dict[str, str]:
    """Return {option: what it means}; networks of one file share a table of docs/options.toml."""
    texts = option_texts()
    beside = [other.name for other in registered() if other.path == found.path]
    own = next((texts[name] for name in (found.name, *beside) if name in texts), {})
    known = texts["all"] | own
    if unknown := own.keys() - architecture.defaults.keys():
        sys.exit(f"docs/options.toml: {found.name} has no option {', '.join(sorted(unknown))}")
    if missing := [name for name in architecture.defaults if name not in known]:
        sys.exit(f"docs/options.toml says nothing of {found.name}'s {', '.join(missing)}")
    return {name: known[name] for name in architecture.defaults}


def dimensions(architecture: type[Architecture]) -> str:
    """Return the dimensions, as in 2D, 3D."""
    return ", ".join(f"{dims}D" for dims in sorted(architecture.dims))


def millions(count: int) -> str:
    """Return a count in millions."""
    return f"{count / 1e6:.2f} M" if count < 1e7 else f"{count / 1e6:.1f} M"


@cache
def class_of(found: Found) -> type[Architecture]:
    """Return the class; importing it asks for the packages that it needs."""
    return load("architecture", f"{found.path}:{found.name}")  # by name every file would be looked through


def docstring(path: Path) -> str:
    """Return the text at the top of a file."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def source_of(words: str) -> str:
    """Return what a docstring says after "Source:", with links."""
    said = paragraph(words, "Source: ", r"[;,.] (?:written|no code|layers|as far as)|$").rstrip(".;,") + "."
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", said)


def paragraph(words: str, start: str, end: str, *, keep: bool = False) -> str:
    """Return a docstring's paragraph from `start` on (which is dropped unless `keep`) to `end`, on one line."""
    for block in words.split("\n\n"):
        line = " ".join(block.split()).replace("`autoseg ", "`")
        if match := re.search(rf"(?:^|(?<=[.:;)] ))({start})(.*?)(?:{end})", line):
            return (match[1] if keep else "") + match[2]
    return ""


if __name__ == "__main__":
    main()
