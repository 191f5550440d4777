"""The matrix of runs, what is done again and what is not, failures, budgets; children are played (conftest)."""

import csv
import json
import shutil
import tomllib

import pytest
from benchmarking_players import DICE, STEP_SECONDS

from autoseg.benchmarking import Budget, Question, dry_run
from autoseg.benchmarking.judging import conclude
from autoseg.errors import Interrupted, UserError
from autoseg.plugins import load

DATASET = "Dataset004_Hippocampus"


def rows(done, kind="run"):
    with (done.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def test_every_entry_runs_on_every_fold_with_every_seed(campaign, players):
    done = campaign("plain_unet", "unet", folds="0,1", seeds=2)
    assert len(players.asked("plan")) == 2
    assert len(players.asked("measure")) == 2
    assert sorted(players.asked("train")) == sorted(
        f"{DATASET}/{network}-supervised-common/fold_{fold}/seed_{seed}"
        for network in ("plain_unet", "unet") for fold in (0, 1) for seed in (0, 1)
    )  # fmt: skip
    assert done.failures == {}
    assert len(rows(done)) == 8
    cases = rows(done, "case")
    assert len(cases) == 8 * 20 * 2
    assert len({(row["entry"], row["fold"], row["seed"], row["case"], row["label"]) for row in cases}) == len(cases)
    of_one_run = [float(row["dice"]) for row in cases if (row["entry"], row["fold"], row["seed"]) == ("unet", "0", "1")]
    (run,) = (row for row in rows(done) if (row["entry"], row["fold"], row["seed"]) == ("unet", "0", "1"))
    assert float(run["dice"]) == pytest.approx(sum(of_one_run) / 40)
    assert (run["case"], run["label"], run["steps"]) == ("", "", "100")
    assert {file.name for file in done.folder.glob("*.*")} >= {"index.html", "results.csv", "benchmark.json"}
    assert len(list(done.folder.glob("*.csv"))) == 1
    assert {row["status"] for row in rows(done)} == {"finished"}
    assert done.verdicts[0].winner == "plain_unet-supervised-common"
    assert done.verdicts[0].cases == 40


def test_the_first_seed_of_everything_comes_first(campaign, players):
    campaign("plain_unet", "unet", seeds=2)
    assert [key[-1] for key in players.asked("train")] == ["0", "0", "1", "1"]


def test_a_second_call_runs_nothing(campaign, players):
    first = campaign()
    players.told.clear()
    second = campaign()
    assert players.told == []
    assert second.verdicts == first.verdicts
    assert second.record.content == first.record.content


def test_a_run_whose_files_were_deleted_is_done_again(campaign, players, place):
    done = campaign(seeds=1)
    gone = next(key for key in players.asked("train") if "/unet-" in key)
    shutil.rmtree(done.folder / done.record["runs"][gone]["folder"])
    players.told.clear()
    assert campaign(seeds=1).failures == {}
    assert players.told == [("train", gone)]


def test_more_seeds_and_methods_add_to_the_campaign(campaign, players):
    campaign("plain_unet", seeds=1)
    players.told.clear()
    campaign("plain_unet", "unet", seeds=1)
    assert players.asked("train") == [f"{DATASET}/unet-supervised-common/fold_0/seed_0"]
    done = campaign("plain_unet", seeds=2)  # what was asked before stays
    assert [standing.runs for standing in done.verdicts[0].standings] == [2, 1]
    assert any("same number of runs" in note for note in done.verdicts[0].notes)


def test_another_question_is_another_campaign(campaign):
    campaign(budget="100")
    with pytest.raises(UserError, match=r"budget 100.*not 200[\s\S]*another --name"):
        campaign(budget="200")
    assert campaign(budget="200", name="d").failures == {}


def test_restart_forgets_what_was_done(campaign, players):
    campaign()
    players.told.clear()
    campaign(restart=True)
    assert len(players.asked("train")) == 4


def test_a_changed_plan_is_refused(campaign, place):
    campaign()
    file = place.plans_file(DATASET, "c-unet")
    file.write_text(file.read_text().replace('"batch_size": 2', '"batch_size": 3'))
    with pytest.raises(UserError, match="was changed since"):
        campaign()


def test_a_failed_run_goes_into_the_record_and_the_others_go_on(campaign, players):
    players.fails["train " + DATASET + "/unet"] = "out of memory <b>"
    done = campaign()
    assert list(done.failures) == [f"{DATASET}/unet-supervised-common/fold_0/seed_{seed}" for seed in (0, 1)]
    assert [row["status"] for row in rows(done)].count("finished") == 2
    assert {row["error"] for row in rows(done)} == {"", "out of memory <b>"}
    assert "out of memory &lt;b&gt;" in (done.folder / "index.html").read_text(encoding="utf-8")
    players.fails.clear()
    players.told.clear()
    assert campaign().failures == {}  # failed ones are tried again, finished ones are not
    assert len(players.asked("train")) == 2


def test_failures_are_those_of_the_call(campaign, players):
    players.fails["/unet-"] = "out of memory"
    assert campaign("plain_unet", "unet", seeds=1).failures
    assert campaign("plain_unet", seeds=1).failures == {}  # it stays in the record, and on the page


def test_a_network_that_cannot_be_imported_is_left_out_and_may_come_back(campaign, place, monkeypatch):
    folder = place.root / "architectures"
    folder.mkdir()
    file = folder / "mine.py"
    lines = [
        "from autoseg import Architecture, register",
        '@register.architecture("mine")',
        "class Mine(Architecture):",
        '    """For a test."""',
    ]
    file.write_text("\n".join(["import no_such_package", *lines]))
    assert "no_such_package" in campaign("plain_unet", "mine", seeds=1).failures["mine"]
    file.write_text("\n".join(lines))
    monkeypatch.setitem(STEP_SECONDS, "mine", 0.1)
    monkeypatch.setitem(DICE, "mine", 0.5)
    assert campaign("plain_unet", "mine", seeds=1).failures == {}


def test_scores_that_are_nowhere_defined(campaign, players):
    done = campaign("plain_unet", "unet", seeds=2)
    for run in done.record["runs"].values():
        if "/unet-" in run["folder"]:
            summary = done.folder / run["folder"] / "validation" / "summary.json"
            content = json.loads(summary.read_text())
            for named in content["cases"].values():
                for scores in named.values():
                    scores["dice"] = None
            summary.write_text(json.dumps(content))
    verdicts, _ = conclude(done.record)
    assert verdicts[0].standings[-1].entry == "unet-supervised-common"
    assert verdicts[0].winner is None
    assert "NaN" not in (done.folder / "benchmark.json").read_text()


def test_one_data_set_of_a_name(campaign, place):
    campaign("plain_unet", seeds=1)
    shutil.copytree(place.raw / DATASET, place.root / "other" / DATASET)
    with pytest.raises(UserError, match="two data sets"):
        campaign("plain_unet", seeds=1, datasets=(str(place.root / "other" / DATASET),))


def test_a_network_without_a_plan_fails_alone(campaign, players):
    players.fails["plan"] = "no such patch"
    done = campaign("plain_unet")
    assert "planning failed: no such patch" in next(iter(done.failures.values()))
    assert done.verdicts == ()
    assert "No run is finished yet" in (done.folder / "index.html").read_text(encoding="utf-8")


def test_a_step_that_cannot_be_measured_fails_its_runs(campaign, players):
    players.fails["measure"] = "it explodes"
    assert "could not be measured: it explodes" in next(iter(campaign().failures.values()))


def test_runs_whose_process_died_are_tried_once_more(campaign, players):
    players.dies["unet-supervised-common/fold_0/seed_0"] = 1
    assert campaign("unet", seeds=1, jobs=2).failures == {}
    assert len(players.asked("train")) == 2
    players.dies["unet-supervised-common/fold_0/seed_1"] = 9
    done = campaign("unet", seeds=2, jobs=2)
    assert list(done.failures.values()) == ["the process was killed by SIGKILL"]


def test_an_interruption_leaves_tables_and_page(campaign, players, place, monkeypatch):
    def stopped(tasks, done, **means):
        if tasks and tasks[0].kind == "train":
            players.carry_out(tasks[:1], done)
            raise Interrupted("stopped by SIGINT")
        players.carry_out(tasks, done)

    monkeypatch.setattr("autoseg.benchmarking.preparing.carry_out", stopped)
    with pytest.raises(Interrupted):
        campaign()
    assert (place.root / "benchmarks" / "c" / "index.html").is_file()
    assert [run["status"] for run in campaign.record()["runs"].values()].count("finished") == 1


def test_steps_of_equal_time_and_equal_operations(campaign):
    campaign(equal="time", budget="20s", name="t")
    steps = {run["entry"]: run["steps"] for run in campaign.record("t")["runs"].values()}
    assert steps == {"plain_unet-supervised-common": 200, "unet-supervised-common": 100}
    campaign(equal="flops", budget="1e10", name="f")
    steps = {run["entry"]: run["steps"] for run in campaign.record("f")["runs"].values()}
    assert steps == {"plain_unet-supervised-common": 100, "unet-supervised-common": 50}


def test_steps_are_measured_again_when_the_recipe_turns_out_longer(campaign, players):
    campaign("plain_unet", equal="time", budget="900s")  # 9000 steps: mirrored and fully augmented images
    assert len(players.asked("measure")) == 2
    data = campaign.record()["datasets"][DATASET]
    assert data["reference_steps"] == 9000
    assert (data["recipe"]["augmentation"], data["recipe"]["learning_rate"]) == ("full", 0.003)


def test_own_and_common_recipes(campaign, players, place):
    done = campaign("plain_unet", "focal_unet", recipes="both", seeds=1)
    assert sorted(done.record["entries"]) == [
        "focal_unet-supervised-common", "focal_unet-supervised-own", "plain_unet-supervised-common"
    ]  # fmt: skip
    recipes = {file.stem: tomllib.loads(file.read_text()) for file in done.folder.glob(f"recipes/{DATASET}/*.toml")}
    own, common = recipes["focal_unet-supervised-own"], recipes["focal_unet-supervised-common"]
    usual = {"dice_weight": 1.0, "cross_entropy_weight": 1.0, "beta1": 0.9, "beta2": 0.999, "annealing": "polynomial",
             "dice_squared": False, "dice_background": False}  # fmt: skip
    assert common == recipes["plain_unet-supervised-common"] | usual  # what the authors chose, at the engine's values
    assert (own["dice_weight"], own["cross_entropy_weight"]) == (0.6, 0.4)
    assert own["learning_rate"] != common["learning_rate"]
    assert [own[name] for name in ("augmentation", "mirror")] == [common[name] for name in ("augmentation", "mirror")]
    only = campaign("plain_unet", "focal_unet", recipes="own", seeds=1, name="own")
    assert sorted(only.record["entries"]) == ["focal_unet-supervised-own", "plain_unet-supervised-common"]


def test_an_own_recipe_that_comes_out_as_the_common_one_is_not_run_twice(campaign, players, monkeypatch):
    published = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}  # gives way in short runs
    monkeypatch.setattr(load("architecture", "hiformer"), "recipe", published)
    done = campaign("hiformer", recipes="both", seeds=1)
    assert players.asked("train") == [f"{DATASET}/hiformer-supervised-common/fold_0/seed_0"]
    assert done.record["skipped"] == {
        f"{DATASET}/hiformer-supervised-own": "at this length its own recipe is the common one"
    }


def test_2d_networks_are_left_out_of_3d_data_with_a_note(campaign):
    done = campaign("plain_unet", "meddinov3", configuration="3d_fullres", recipes="common")
    assert done.failures == {}
    assert "meddinov3 has no 3D form" in (done.folder / "index.html").read_text(encoding="utf-8")


def test_existing_plans_for_all(campaign, players):
    done = campaign("plain_unet", "unet", plans="tiny")
    assert players.asked("plan") == []
    plans = done.record["plans"]
    assert {plan["plans_name"] for plan in plans.values()} == {"tiny"}
    assert plans[f"{DATASET}/unet"]["architecture"] == "unet"


def test_two_campaigns_in_one_folder_exclude_each_other(campaign, place):
    from autoseg.benchmarking.lock import alone

    with alone(place.root / "benchmarks" / "c"), pytest.raises(UserError, match="another process"):
        campaign()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ("plain_une",)}, "did you mean plain_unet"),
        ({"trainers": ("superviced",)}, "did you mean supervised"),
        ({"trainers": ("masked_autoencoder",)}, "pretraining method"),
        ({"datasets": ("Dataset999_Nothing",)}, "no data set"),
        ({"plans": "nothing"}, "there are no plans 'nothing'"),
        ({"folds": "x"}, "not understood"),
    ],
)
def test_wrong_questions_are_told_before_anything_runs(place, players, change, message):
    from autoseg.benchmarking import benchmark

    asked = {"datasets": (str(place.raw / DATASET),), "architectures": ("plain_unet",),
             "budget": Budget.parse("steps", "5"), **change}  # fmt: skip
    with pytest.raises(UserError, match=message):
        benchmark(Question(**asked), workspace=place)
    assert players.told == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architectures": ()}, "nothing to compare"),
        ({"datasets": ()}, "no data set"),
        ({"recipes": "mine"}, "--recipes 'mine'"),
        ({"seeds": 0}, "--seeds 0"),
        ({"settings": {"steps": "5"}}, "--set steps"),
    ],
)
def test_questions_that_make_no_sense(arguments, message):
    asked = {"datasets": ("4",), "architectures": ("plain_unet",), "budget": Budget("steps", 5), **arguments}
    with pytest.raises(UserError, match=message):
        Question(**asked)


@pytest.mark.parametrize(
    ("equal", "text", "amount"),
    [("steps", "500", 500), ("steps", None, 1000), ("time", "1h30m", 5400), ("time", "45s", 45), ("time", "90", 90),
     ("flops", "2e15", 2e15)],
)  # fmt: skip
def test_budgets(equal, text, amount):
    assert Budget.parse(equal, text).amount == amount


@pytest.mark.parametrize(
    ("equal", "text"),
    [("steps", "60s"), ("steps", "0.5"), ("time", "soon"), ("flops", "-1"), ("money", "5"), ("time", "0")],
)
def test_what_is_no_budget(equal, text):
    with pytest.raises(UserError, match=r"--(budget|equal)"):
        Budget.parse(equal, text)


def test_operations_that_were_not_counted():
    with pytest.raises(UserError, match="--equal time"):
        Budget("flops", 1e9).steps({"step_flops": None})


NAMING = '''from autoseg import register
from autoseg.architecture import Architecture

@register.architecture("mine")
class Mine(Architecture):
    """For a test."""

    trainer = "superviced"
'''


@pytest.fixture
def guided(monkeypatch):
    """The network `ms_dual_guided`, whose authors train it by a loss of its own, can be played."""
    monkeypatch.setitem(STEP_SECONDS, "ms_dual_guided", 0.4)
    monkeypatch.setitem(DICE, "ms_dual_guided", 0.5)


def test_own_recipes_take_the_trainer_that_a_network_names(campaign, players, guided):
    done = campaign("plain_unet", "ms_dual_guided", recipes="both", seeds=1)
    trainers = {entry["name"]: entry["trainer"] for entry in done.record["entries"].values()}
    assert trainers == {
        "ms_dual_guided": "supervised",
        "ms_dual_guided + guided_attention (own recipe)": "guided_attention",
        "plain_unet": "supervised",
    }
    assert {(row["recipe"], row["trainer"]) for row in rows(done) if row["architecture"] == "ms_dual_guided"} == {
        ("common", "supervised"), ("own", "guided_attention")
    }  # fmt: skip
    page = (done.folder / "index.html").read_text(encoding="utf-8")
    assert page.count("guided_attention</td>") == 1  # the column of the table of own recipes
    own = campaign("plain_unet", "ms_dual_guided", recipes="own", seeds=1, name="own").record["entries"]
    assert sorted(own) == ["ms_dual_guided-guided_attention-own", "plain_unet-supervised-common"]


def test_the_trainers_asked_for_win_over_the_one_that_a_network_names(campaign, guided):
    done = campaign("ms_dual_guided", trainers=("supervised",), recipes="own", seeds=1)
    assert sorted(done.record["entries"]) == ["ms_dual_guided-supervised-own"]


@pytest.mark.parametrize("recipes", ["own", "both"])
def test_a_network_that_names_an_unknown_trainer(campaign, players, place, recipes):
    (place.root / "architectures").mkdir()
    (place.root / "architectures" / "mine.py").write_text(NAMING)
    with pytest.raises(UserError, match=r"'mine' names the trainer 'superviced'.*did you mean supervised"):
        campaign("mine", recipes=recipes)
    assert players.told == []


def test_the_trainer_that_a_network_names_is_not_looked_for_where_it_is_not_used(campaign, place, monkeypatch):
    (place.root / "architectures").mkdir()
    (place.root / "architectures" / "mine.py").write_text(NAMING)
    monkeypatch.setitem(STEP_SECONDS, "mine", 0.1)
    monkeypatch.setitem(DICE, "mine", 0.5)
    assert campaign("mine", recipes="common", seeds=1).failures == {}
    assert campaign("mine", trainers=("supervised",), seeds=1, name="given").failures == {}


def test_what_plans_and_runs_warn_of_is_told_once_and_kept(campaign, players, caplog):
    players.warns = {"plan Dataset004_Hippocampus/unet": "maps are random", "unet-supervised-common/fold_0": "odd"}
    done = campaign("plain_unet", "unet")
    said = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert said.count("Dataset004_Hippocampus/unet: maps are random") == 1
    assert said.count("unet: odd") == said.count("plain_unet: odd") == 1  # of two seeds each
    told = {(row["entry"], row["seed"]): row["warnings"] for row in rows(done)}
    assert told["unet", "0"] == told["unet", "1"] == "maps are random | odd"
    assert told["plain_unet", "1"] == "odd"
    page = (done.folder / "index.html").read_text(encoding="utf-8")
    assert "unet: maps are random" in page
    assert "odd" in page


@pytest.mark.parametrize("dry", [False, True])
def test_networks_that_do_not_serve_a_data_set_are_told(campaign, players, place, caplog, dry):
    def ask(*architectures):
        if not dry:
            return campaign(*architectures)
        data = (str(place.raw / DATASET),)
        asked = Question(datasets=data, architectures=architectures, budget=Budget.parse("steps", "100"), device="cpu")
        return dry_run(asked, workspace=place)

    ask("plain_unet", "meddinov3")
    said = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert f"meddinov3 is left out on {DATASET}: it has no 3D form" in said
    shutil.rmtree(place.root / "benchmarks", ignore_errors=True)
    players.told.clear()
    with pytest.raises(UserError, match="meddinov3 has no 3D form") as refused:
        ask("meddinov3")
    assert "add networks that have one" in str(refused.value)
    assert players.told == []
    assert not list(place.root.rglob("benchmark.json"))
