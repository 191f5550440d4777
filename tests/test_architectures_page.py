"""docs/architectures.md has every registered network and is what docs/make_architectures.py would write."""

import re
import sys
from pathlib import Path

import pytest

from autoseg.errors import UserError
from autoseg.plugins import load

DOCS = Path(__file__).resolve().parents[1] / "docs"
DRAWN = ["unet", "transdae"]  # drawn anew here; all of them would take a minute


@pytest.fixture(scope="module")
def maker():
    sys.path.insert(0, str(DOCS))
    try:
        import make_architectures
    finally:
        sys.path.remove(str(DOCS))
    return make_architectures


@pytest.fixture(scope="module")
def page():
    return (DOCS / "architectures.md").read_text("utf-8")


def sections(page):
    """Name -> section."""
    found = re.split(r"^### (\w+)$", re.sub(r"^## .*$", "", page, flags=re.MULTILINE), flags=re.MULTILINE)
    return {name: f"### {name}{text}".strip() for name, text in zip(found[1::2], found[2::2], strict=True)}


def without_figures(maker, text):
    """The paragraphs that can be written without building networks."""
    return [part for part in text.split("\n\n") if not part.startswith((maker.MEASURED, "```text"))]


def test_every_registered_architecture_has_its_texts_and_its_section(maker, page):
    names = {found.name for found in maker.registered()}
    texts = maker.authored()
    families = texts.pop("families")
    assert texts.keys() == names, "docs/architectures.toml"
    assert all(text.keys() - {"flow"} == {"family", "published", "when"} for text in texts.values())
    assert {text["family"] for text in texts.values()} <= set(families)
    assert sections(page).keys() == names, "run python docs/make_architectures.py"


def test_the_page_says_what_the_networks_say(maker, page):
    written, texts = sections(page), maker.authored()
    assert page.startswith(maker.INTRODUCTION)
    for found in maker.registered():
        try:
            expected = maker.section(found, texts[found.name], None).split("\n\n")
        except UserError:  # its extra package is not installed
            continue
        assert without_figures(maker, written[found.name]) == expected, "run python docs/make_architectures.py"
        assert written[found.name].count("```text\nimage ") == 1


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_and_counts_are_those_of_the_networks(maker, page, name):
    found = next(found for found in maker.registered() if found.name == name)
    known = maker.measure(load("architecture", name))
    assert sections(page)[name] == maker.section(found, maker.authored()[name], known)
    row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
    assert row.endswith(f"| {maker.millions(known.counts[2])} | {maker.millions(known.counts[3])} |")


def test_a_picture_by_hand(maker):
    """A U-Net++ of three levels: as many joins at a level as it has nested nodes, all outputs at full resolution."""
    spec = maker.example_plan(2)
    spec = spec.model_copy(
        update={
            "strides": spec.strides[:3],
            "kernel_sizes": spec.kernel_sizes[:3],
            "features": (8, 16, 24),
            "blocks_encoder": (2, 2, 2),
            "blocks_decoder": (2, 2),
        }
    )
    architecture = load("architecture", "unet_plus_plus")
    lines = maker.data_flow.draw(*maker.data_flow.build(architecture, architecture.adapt_spec(spec))).splitlines()
    assert lines[0] == "image 1 x 224 x 224"
    assert [re.findall(r"\S+", line)[:4] for line in lines[2:]] == [
        ["224", "x", "224", "8"],
        ["112", "x", "112", "16"],
        ["56", "x", "56", "24"],
    ]
    assert "concat (x2)" in lines[2]
    assert lines[2].endswith("──▶ 3 (x2)")
    assert "concat " in lines[3]
    assert lines[4].endswith("──▲")


def test_every_option_has_a_sentence(maker, page):
    written = sections(page)
    for found in maker.registered():
        try:
            architecture = maker.class_of(found)
        except UserError:  # its extra package is not installed
            continue
        said = maker.meanings(found, architecture)
        assert said.keys() == architecture.defaults.keys()
        for option, meaning in said.items():
            assert len(meaning.split()) >= 5, (found.name, option)
            default = architecture.defaults[option]
            assert (default is not None) or re.search(r"\bnone\b|fills it in", meaning), f"{found.name}: {option}=none"
            assert f"    - `{option}`: {meaning}" in written[found.name]


def built(architecture, maker, **options):
    """A network with these options on the example plan, without weights."""
    plan = maker.example_plan(min(architecture.dims)).model_copy(update={"options": options})
    return maker.data_flow.build(architecture, architecture.adapt_spec(plan))[0]


@pytest.mark.parametrize("name", ["d_former", "focal_unet", "mcanet", "meddinov3", "msvm_unet", "pct_net", "swin_unet",
                                  "vm_unet"])  # fmt: skip
def test_rates_of_stochastic_depth_are_as_the_page_says(maker, name):
    found = next(found for found in maker.registered() if found.name == name)
    architecture = maker.class_of(found)
    blocks = [each for each in built(architecture, maker, drop_path=0.25).modules() if hasattr(each, "drop_path")]
    rates = [getattr(block.drop_path, "rate", block.drop_path) for block in blocks]
    said = maker.meanings(found, architecture)["drop_path"]
    assert ("the same in all" in said) == (len(set(rates)) == 1)
    assert ("rising from 0" in said) == (min(rates) == 0)
    assert max(rates) == pytest.approx(0.25)


def test_every_network_with_rates_of_stochastic_depth_is_looked_at(maker):
    asked = test_rates_of_stochastic_depth_are_as_the_page_says.pytestmark[0].args[1]
    with_rates = []
    for found in maker.registered():
        try:
            with_rates += [found.name] * ("drop_path" in maker.class_of(found).defaults)
        except UserError:  # its extra package is not installed
            continue
    assert sorted(with_rates) == sorted(asked)


@pytest.mark.parametrize("name", ["unet", "res_unet", "attention_unet", "att_res_unet", "mpu_net"])
def test_levels_beyond_the_plan_are_as_the_page_says(maker, name):
    found = next(found for found in maker.registered() if found.name == name)
    architecture, plan = maker.class_of(found), maker.example_plan(2)
    more = len(plan.features) + 1
    spec = architecture.adapt_spec(plan.model_copy(update={"options": {"levels": more}}))
    said = maker.meanings(found, architecture)["levels"]
    assert ("at most the plan's" in said) == (len(spec.features) < more)
    assert ("repeat its last stride" in said) == (spec.strides[-1] == plan.strides[-1] and len(spec.strides) == more)


def test_what_limits_positions_is_as_the_page_says(maker):
    """Too many positions: paratranscnn starts deeper, the others average."""
    plan = maker.example_plan(2)
    for found in maker.registered():
        if "max_tokens" not in maker.option_texts().get(found.name, {}):
            continue
        architecture = maker.class_of(found)
        few, many = (
            architecture.adapt_spec(plan.model_copy(update={"options": {"max_tokens": most}})) for most in (900, 4096)
        )
        deeper = "deeper" in maker.meanings(found, architecture)["max_tokens"]
        assert deeper == (len(few.strides) > len(many.strides))
    assert "max_tokens" not in maker.option_texts()["all"]


@pytest.mark.parametrize("name", ["hiformer", "mcanet", "ms_dual_guided", "paratranscnn", "transdae", "y_net"])
def test_what_a_picture_does_not_show_is_told_beside_it(page, name):
    assert "\n\nIn one line: " in sections(page)[name]


def test_links_of_the_table_lead_to_sections(page):
    anchors = re.findall(r"\]\(#(\w+)\)", page)
    assert len(anchors) > 30
    assert set(anchors) == sections(page).keys()
