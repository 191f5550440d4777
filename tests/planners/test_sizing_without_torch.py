"""Plans of nnU-Net's networks are made without torch, and by what their networks themselves go by."""

import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import plugins
from autoseg.architecture import Architecture
from autoseg.conformance.architecture import check
from autoseg.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "autoseg" / "demo" / "data" / "Dataset004_Hippocampus"
SIZED = [found.name for found in plugins.list_plugins("architecture") if found.sizing]


def test_the_networks_of_nnunet_name_a_sizing():
    assert {"plain_unet", "residual_encoder_unet"} <= set(SIZED)


@pytest.mark.parametrize("name", SIZED)
def test_a_network_is_sized_by_its_own_base_class(name):
    sizing, network = plugins.load_sizing(name), plugins.load("architecture", name)
    assert issubclass(network, sizing)
    assert not issubclass(sizing, Architecture)
    assert sizing_finding(plugins.find("architecture", name), network).ok


def sizing_finding(found, network):
    return next(one for one in check(found, network) if one.check == "is sized by its base class")


@pytest.mark.parametrize(
    ("bases", "body", "wanted"),
    [
        ("PlainUNetSizing, UNet", '"""As its sizing."""', None),
        ("UNet", '"""Without its sizing."""', "no base class"),
        ("PlainUNetSizing, UNet", "dims = (2,)", "dims is another one than that of PlainUNetSizing"),
        (
            "PlainUNetSizing, UNet",
            "@classmethod\n    def adapt_spec(cls, spec):\n        return spec",
            "adapt_spec is another one than that of PlainUNetSizing",
        ),
    ],
)
def test_check_plugin_compares_a_network_with_its_sizing(tmp_path, bases, body, wanted):
    file = tmp_path / "mine.py"
    file.write_text(
        "from autoseg.architectures.blocks.unet import UNet\n"
        "from autoseg.architectures.blocks.unet_sizing import PlainUNetSizing\n"
        "from autoseg import register\n\n\n"
        '@register.architecture("mine", sizing="autoseg.architectures.blocks.unet_sizing:PlainUNetSizing")\n'
        f"class Mine({bases}):\n    {body}\n"
    )
    network = plugins.load("architecture", str(file))
    planned = plugins.load_sizing(str(file))  # what the class itself defines is planned by
    assert (planned is network) == ("another one" in (wanted or ""))
    finding = sizing_finding(plugins.find("architecture", str(file)), network)
    assert finding.ok == (wanted is None)
    assert (wanted or "") in finding.message


def test_a_network_without_one_is_sized_by_its_class():
    assert plugins.load_sizing("primus") is plugins.load("architecture", "primus")


@pytest.mark.parametrize("planner", ["nnunet", "residual_encoder_m"])
def test_plans_and_preprocessing_need_no_torch_where_the_memory_is_given(planner, tmp_path):
    code = (
        "import sys\n"
        "from autoseg.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    line = ["plan-and-preprocess", DATA, "--planner", planner, "--gpu-memory", "8", "--workspace", tmp_path]
    done = subprocess.run([sys.executable, "-c", code, *map(str, line)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob(f"{planner}.json"))


@pytest.mark.parametrize(
    "sizing", ["no_such_module:Sizing", "autoseg.network_sizing:Nothing", "autoseg.plans", ":", ".a:B", "json:dumps"]
)
def test_a_sizing_that_is_not_there_is_told(sizing, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from autoseg import Architecture, register\n\n\n"
        f'@register.architecture("mine", sizing="{sizing}")\n'
        'class Mine(Architecture):\n    """For a test."""\n'
    )
    with pytest.raises(UserError, match="cannot be taken") as refused:
        plugins.load_sizing(str(file))
    assert "mine.py" in str(refused.value)
