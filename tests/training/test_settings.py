import os
from typing import ClassVar, Literal

import pytest

from autoseg.errors import UserError
from autoseg.training.settings import declared_settings, parse_assignments, read_recipe, resolve_settings


class Base:
    fixed: ClassVar[int] = 1
    learning_rate: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_size: int | None = None
    _private: int = 3


class Method(Base):
    learning_rate: float = 0.5
    gamma: float = 2.0


def resolve(cls=Method, plan=None, recipe=None, given=None, network=None):
    resolved = resolve_settings(
        cls, plan=plan or {}, recipe=recipe or {}, given=given or {}, base=Base, architecture=network
    )
    return {name: (setting.value, setting.origin) for name, setting in resolved.items()}


def test_settings_are_the_annotated_public_attributes_of_all_bases():
    assert set(declared_settings(Method)) == {"learning_rate", "optimizer", "batch_size", "gamma"}


def test_a_setting_that_a_subclass_has_no_use_for_is_none_of_its_own():
    class Without(Method):
        gamma: ClassVar[float] = 0.0

    assert "gamma" not in declared_settings(Without)
    with pytest.raises(UserError, match="gamma"):
        resolve_settings(Without, plan={}, recipe={}, given={"gamma": "2"}, base=Base)


def test_precedence_is_default_plan_recipe_command_line():
    values = resolve(Base, {"learning_rate": 1.0}, {"learning_rate": 2.0}, {"learning_rate": "3"})
    assert values["learning_rate"] == (3.0, "command line")
    assert resolve(Base, {"learning_rate": 1.0}, {"learning_rate": 2.0})["learning_rate"] == (2.0, "recipe")
    assert resolve(Base, {"learning_rate": 1.0})["learning_rate"] == (1.0, "plan")
    assert resolve(Base)["learning_rate"] == (0.01, "default")


def test_the_plan_does_not_touch_what_a_method_names_anew():
    values = resolve(Method, {"learning_rate": 1.0, "optimizer": "adamw"})
    assert values["learning_rate"] == (0.5, "default")
    assert values["optimizer"] == ("adamw", "plan")


def test_what_a_network_needs_stands_between_plan_and_recipe():
    needs = {"optimizer": "adamw", "learning_rate": 3e-4, "unknown": 1}
    values = resolve(Base, {"optimizer": "sgd", "batch_size": 2}, network=needs)
    assert values["optimizer"] == ("adamw", "architecture")
    assert values["batch_size"] == (2, "plan")
    assert "unknown" not in values
    assert resolve(Base, recipe={"optimizer": "sgd"}, network=needs)["optimizer"] == ("sgd", "recipe")
    assert resolve(Method, network=needs)["learning_rate"] == (0.5, "default")


def test_text_is_turned_into_the_declared_type():
    values = resolve(given={"batch_size": "4", "gamma": "3"})
    assert values["batch_size"] == (4, "command line")
    assert values["gamma"] == (3.0, "command line")
    assert resolve(given={"batch_size": "none"})["batch_size"][0] is None


def test_none_is_a_word_where_it_is_one_of_the_choices():
    class Augmented(Base):
        augmentation: Literal["full", "none"] = "full"

    assert resolve(Augmented, given={"augmentation": "none"})["augmentation"][0] == "none"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean gamma"):
        resolve(given={"gama": "3"})


@pytest.mark.parametrize(("name", "value"), [("gamma", "much"), ("optimizer", "adam"), ("batch_size", "1.5")])
def test_a_wrong_type_names_setting_and_value(name, value):
    with pytest.raises(UserError, match=f"setting {name} cannot be '{value}'"):
        resolve(given={name: value})


def test_assignments():
    assert parse_assignments(["a=1", "b = x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UserError, match="name=value"):
        parse_assignments(["a"])


def test_a_recipe_is_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("learning_rate = 0.002\noptimizer = 'adamw'\n")
    assert read_recipe(path) == {"learning_rate": 0.002, "optimizer": "adamw"}
    path.write_text("learning_rate = = 3")
    with pytest.raises(UserError, match=r"recipe\.toml"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [("a = " + 5000 * "[", "not a readable recipe"), ("steps = " + 6000 * "9", "not a readable recipe"),
     (None, "the recipe does not exist")],
    ids=["deep", "huge", "missing"],
)  # fmt: skip
def test_odd_recipes_are_told(tmp_path, content, said):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"recipe\.toml: {said}"):
        read_recipe(path)


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.toml")
    with pytest.raises(UserError, match=r"recipe\.toml: .*pipe"):
        read_recipe(tmp_path / "recipe.toml")
