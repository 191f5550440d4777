"""Finding plug-ins by name or file, without importing unrelated files."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import warnings

import pytest

from autoseg import plugin_sources, plugins
from autoseg.errors import UserError
from autoseg.plugins import find, list_plugins, load, register

SOURCE = '''
"""Module summary."""
from autoseg import register

@register.{kind}("{name}")
class Thing:
    """{summary}

    More.
    """
    mark = "{mark}"
'''


def write(path, *, kind="trainer", name="mine", summary="Does things.", mark="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE.format(kind=kind, name=name, summary=summary, mark=mark))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(autouse=True)
def forgotten():
    """Tests install things."""
    plugins._points.cache_clear()
    yield
    plugins._points.cache_clear()


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(plugins, "_installed", lambda kind: {})


def test_found_in_the_places_of_the_design(tmp_path, nothing_installed):
    workspace = tmp_path / "work"
    write(tmp_path / "here" / "trainers" / "one.py", name="one")
    write(workspace / "trainers" / "family" / "two.py", name="two")
    write(tmp_path / "trainers" / "three.py", name="three")
    assert [entry.name for entry in list_plugins("trainer", workspace)] == ["one", "three", "two"]
    assert [entry.name for entry in list_plugins("trainer")] == ["one"]
    found = find("trainer", "two", workspace)
    assert (found.summary, found.line) == ("Does things.", 6)


def test_listing_imports_nothing_and_survives_broken_files(tmp_path, nothing_installed):
    folder = tmp_path / "here" / "trainers"
    write(folder / "good.py", name="good")
    (folder / "explodes.py").write_text('from autoseg import register\nraise RuntimeError("imported!")\n')
    (folder / "syntax.py").write_text("register.trainer(\n")
    (folder / "bytes.py").write_bytes(b"register \xff\xfe")
    (folder / "_private.py").write_text((folder / "good.py").read_text().replace("good", "private"))
    assert [entry.name for entry in list_plugins("trainer")] == ["good"]
    assert load("trainer", "good").mark == "a"


@pytest.mark.parametrize(
    "source",
    [
        "register = 1\n@" + "a." * 600 + "trainer('x')\nclass A: ...\n",
        "register = 1\n@f(0x" + "f" * 6000 + ").trainer('x')\nclass A: ...\n",
        "register\n" + "-" * 100_000 + "1\n",
        "register\n" + "(" * 100_000 + "\n",
        "register\n'\\d' is 1\n",
        "register\n\0",
    ],
    ids=["deep name", "huge number", "too much for the parser", "too deep", "warned of", "null byte"],
)
def test_a_hostile_neighbour_keeps_nobody_from_a_plugin(tmp_path, nothing_installed, source):
    folder = tmp_path / "here" / "trainers"
    write(folder / "good.py", name="good")
    (folder / "hostile.py").write_text(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [entry.name for entry in list_plugins("trainer")] == ["good"]
        assert find("trainer", "good").name == "good"
    with pytest.raises(UserError, match=r"hostile\.py: (not valid Python: .+|no trainer registered here)"):
        find("trainer", str(folder / "hostile.py"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders here")
def test_a_pipe_is_no_plugin_and_nobody_waits_for_it(tmp_path):
    folder = tmp_path / "here" / "trainers"
    write(folder / "good.py", name="good")
    os.mkfifo(folder / "pipe.py")
    os.mkfifo(folder / "supervised.py")  # as the installed one is called
    (folder / "fine_tuning.py").mkdir()
    found = {entry.name: entry.path for entry in list_plugins("trainer")}
    assert found["good"].parent == folder
    assert {found[name].parent for name in ("supervised", "fine_tuning")}.isdisjoint({folder})
    assert "pipe" not in found


def test_a_plugin_that_ends_the_program_is_told(tmp_path):
    path = write(tmp_path / "leaving.py")
    path.write_text("import sys\n" + path.read_text() + "\nsys.exit(0)\n")
    with pytest.raises(UserError, match=r"leaving\.py: importing the plug-in failed: SystemExit"):
        load("trainer", str(path))


def test_two_definitions_in_a_file_given_by_path_are_refused_with_both_lines(tmp_path):
    path = write(tmp_path / "twice.py", name="twin")
    path.write_text(path.read_text() * 2)
    for reference in (str(path), f"{path}:twin"):
        with pytest.raises(
            UserError, match=r"'twin' is defined twice: .*twice\.py:6 and .*twice\.py:\d+\n.*rename one$"
        ):
            find("trainer", reference)


def test_kinds_do_not_mix(tmp_path, nothing_installed):
    write(tmp_path / "here" / "trainers" / "a.py", kind="architecture", name="net")
    assert list_plugins("trainer") == []
    with pytest.raises(UserError, match="no trainer called 'net'"):
        find("trainer", "net")


def test_a_name_given_by_keyword_counts(tmp_path, nothing_installed):
    path = write(tmp_path / "mine.py")
    path.write_text(path.read_text().replace('("mine")', '(name="mine")'))
    assert 'name="mine"' in path.read_text()
    assert load("trainer", f"{path}:mine").mark == "a"


def test_file_reference(tmp_path, nothing_installed):
    path = write(tmp_path / "mine.py")
    assert load("trainer", str(path)).mark == "a"
    assert load("trainer", f"{path}:mine").mark == "a"
    with pytest.raises(UserError, match="no trainer 'other' registered here"):
        find("trainer", f"{path}:other")
    with pytest.raises(UserError, match="no planner registered here"):
        find("planner", str(path))
    with pytest.raises(UserError, match="does not exist"):
        find("trainer", str(tmp_path / "none.py"))


def test_file_with_several_needs_a_name(tmp_path, nothing_installed):
    path = write(tmp_path / "two.py", name="first", mark="1")
    path.write_text(
        path.read_text()
        + SOURCE.format(kind="trainer", name="second", summary="S.", mark="2").replace("Thing", "Other")
    )
    with pytest.raises(UserError, match=r"several trainers here: first, second\nTo mend it: say which: .*:first"):
        find("trainer", str(path))
    assert load("trainer", f"{path}:second").mark == "2"
    assert load("trainer", f"{path}:first").mark == "1"


def test_reference_finds_the_same_plugin_from_another_folder(tmp_path, nothing_installed, monkeypatch):
    write(tmp_path / "here" / "trainers" / "one.py", name="one")
    reference = find("trainer", "one").reference
    monkeypatch.chdir("/")
    assert load("trainer", reference).mark == "a"


def test_unknown_name_gives_close_names_and_places(tmp_path, nothing_installed):
    write(tmp_path / "here" / "trainers" / "a.py", name="small_lesions")
    with pytest.raises(UserError, match=r"did you mean small_lesions\?(.|\n)*searched: .*here.trainers"):
        find("trainer", "smal_lesion")
    with pytest.raises(UserError, match=r"known: small_lesions"):
        find("trainer", "qqqq")


@pytest.mark.parametrize("folder", ["DATA", "DATA/Dataset004_X"])
def test_what_lies_with_the_data_is_told_and_runs_only_if_its_file_is_named(tmp_path, folder):
    data = tmp_path / "DATA" / "Dataset004_X"
    data.mkdir(parents=True)
    file = write(tmp_path / folder / "trainers" / "my_trainer.py", name="my_method")
    file.write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n" + file.read_text())
    for name in ("my_method", "my_trainer"):
        with pytest.raises(UserError, match="lies with the data, of which nothing is run unless you say so") as error:
            find("trainer", name, data=data)
        assert error.value.mend == f"read this file, then give its path: --trainer {file}"
    with pytest.raises(UserError, match="no trainer called 'another'; did you mean ") as error:
        find("trainer", "another", data=data)
    assert "my_trainer" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert load("trainer", str(file)).mark == "a"
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("places", [("a.py", "b.py"), ("a.py", "a.py")])
def test_two_definitions_are_refused_with_both_places(tmp_path, nothing_installed, places):
    for place in dict.fromkeys(places):
        write(tmp_path / "here" / "trainers" / place, name="twin")
    if places[0] == places[1]:
        path = tmp_path / "here" / "trainers" / places[0]
        path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match=rf"defined twice: .*{places[0]}:\d+ and .*{places[1]}:\d+"):
        find("trainer", "twin")


def test_changed_file_is_loaded_anew(tmp_path):
    path = write(tmp_path / "mine.py", mark="old")
    assert load("trainer", str(path)).mark == "old"
    write(path, mark="new")
    assert load("trainer", str(path)).mark == "new"


def test_failing_import_is_told_with_the_file(tmp_path):
    path = write(tmp_path / "unimportable.py")
    path.write_text("import no_such_package_at_all\n" + path.read_text())
    with pytest.raises(UserError, match=r"unimportable\.py: importing the plug-in failed: ModuleNotFoundError"):
        load("trainer", str(path))
    assert not [name for name in sys.modules if name.startswith("autoseg_plugin_unimportable")]


def test_conditional_registration_is_told(tmp_path):
    path = write(tmp_path / "mine.py")
    path.write_text(path.read_text() + "\ndel Thing\n")
    with pytest.raises(UserError, match="did not register itself"):
        load("trainer", str(path))


def test_subclass_does_not_inherit_the_name():
    @register.trainer("parent")
    class Parent:
        pass

    class Child(Parent):
        pass

    assert plugins._own_names(Parent) == {"parent": "trainer"}
    assert plugins._own_names(Child) == {}


def test_installed_package_with_entry_point(tmp_path, monkeypatch):
    """A package outside of autoseg: found by name, imported as part of its package (relative imports work)."""
    package = tmp_path / "site" / "clinic_methods"
    write(package / "trainers" / "lung.py", name="lung")
    (package / "__init__.py").write_text("")
    (package / "trainers" / "__init__.py").write_text("")
    (package / "trainers" / "_shared.py").write_text("mark = 'shared'\n")
    source = (package / "trainers" / "lung.py").read_text()
    (package / "trainers" / "lung.py").write_text(
        "from ._shared import mark as shared\n" + source + "    own = shared\n"
    )
    write(tmp_path / "site" / "single_method.py", name="single")
    points = {
        "clinic": "clinic_methods.trainers",
        "single": "single_method",
        "gone": "package_that_was_removed.trainers",
    }
    entries = [importlib.metadata.EntryPoint(name, value, "autoseg.trainers") for name, value in points.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "autoseg.trainers" else [])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    names = {entry.name: entry for entry in list_plugins("trainer")}
    assert {"lung", "single"} <= set(names)
    assert names["lung"].reference == "lung"
    loaded = load("trainer", "lung")
    assert (loaded.own, loaded.__module__) == ("shared", "clinic_methods.trainers.lung")
    assert load("trainer", "single").__module__ == "single_method"


def test_missing_extra_of_an_installed_plugin_names_the_package(tmp_path, monkeypatch):
    path = write(tmp_path / "site" / "needs_extra.py", name="extra")
    path.write_text("import no_such_package_at_all\n" + path.read_text())
    entry = importlib.metadata.EntryPoint("x", "needs_extra", "autoseg.trainers")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == "autoseg.trainers" else [])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(UserError, match="install the package 'no_such_package_at_all'"):
        load("trainer", "extra")


def test_listing_is_cheap():
    code = """
        import sys
        from autoseg.plugins import KINDS, list_plugins
        names = [entry.name for kind in KINDS for entry in list_plugins(kind)]
        heavy = {"torch", "numpy", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_copy_of_an_installed_plugin_beside_the_user_is_no_second_one(tmp_path, monkeypatch):
    installed = find("architecture", "plain_unet")
    (tmp_path / "architectures").mkdir()
    copy = tmp_path / "architectures" / "plain_unet.py"
    copy.write_bytes(installed.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert find("architecture", "plain_unet").reference == "plain_unet"
    assert [found.name for found in list_plugins("architecture")].count("plain_unet") == 1
    copy.write_text(copy.read_text() + "\n# changed\n")
    with pytest.raises(UserError, match="defined twice"):
        find("architecture", "plain_unet")


def test_looking_for_names_asks_the_environment_and_reads_sources_once(monkeypatch, tmp_path):
    """Not once per file or name: with dozens of networks that took seconds of every command."""
    asked, parsed = [], []
    monkeypatch.setattr(plugins, "entry_points", lambda group: asked.append(group) or [])
    original = plugin_sources.parse
    monkeypatch.setattr(plugin_sources, "parse", lambda source: parsed.append(source) or original(source))
    folder = tmp_path / "trainers"
    folder.mkdir()
    for number in range(30):
        write(folder / f"one_{number}.py", name=f"one_{number}")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert plugins.find("trainer", "one_29").path.name == "one_29.py"
    assert asked == ["autoseg.trainers"]
    assert len(parsed) == len(set(parsed)) >= 30


def test_an_edited_file_and_a_new_place_of_modules_are_seen(monkeypatch, tmp_path):
    file = write(tmp_path / "trainers" / "mine.py", name="before")
    monkeypatch.chdir(tmp_path)
    assert find("trainer", "before").path.name == "mine.py"
    file.write_text(file.read_text().replace("before", "after"))
    assert find("trainer", "after").path.name == "mine.py"
    with pytest.raises(UserError, match="no trainer called 'before'"):
        find("trainer", "before")
    write(tmp_path / "site" / "late.py", name="late")
    (tmp_path / "site" / "late-1.0.dist-info").mkdir()
    (tmp_path / "site" / "late-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: late\nVersion: 1.0\n"
    )
    (tmp_path / "site" / "late-1.0.dist-info" / "entry_points.txt").write_text("[autoseg.trainers]\nlate = late\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find("trainer", "late").reference == "late"
