"""Models through the Hub: pushed in one process, pulled in another with an empty cache, and nothing is lost."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import ditzoo
from ditzoo import cli
from ditzoo.bench import read_rows
from ditzoo.bench.results import results_for, write_row
from ditzoo.models import DiT, EvaluationResult
from ditzoo.pipeline import Pipeline, sharing
from ditzoo.pipeline.card import CardSubject, is_generated, model_card
from ditzoo.recipe import Guidance
from ditzoo.weights import DownloadError
from tests.docs.pages import blocks_of
from tests.hub_server import TOKEN, client_environment, run_client, use_hub
from tests.hub_store import Blob
from tests.pipeline.pipes import QUICK, tiny
from tests.weights.test_folders import detailed
from tests.zoo import TINY, inputs, lively

QUICK_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "quick.jsonl"

PUSH_ALL = """
import torch
from tests.weights.test_folders import UNUSUAL, detailed
from tests.zoo import TINY, lively
for name in TINY:
    model = detailed(lively(name, **UNUSUAL))
    print(model.push_to_hub(f"me/{name}", samples=False, max_shard_size=400_000))
"""
PULL_ALL = """
import sys
import torch
import ditzoo
from safetensors.torch import save_file
from tests.zoo import TINY, inputs
found = {}
for name in TINY:
    model = ditzoo.create(f"hf-hub:me/{name}")
    with torch.no_grad():
        found[name] = model(*inputs(model))
    details = model.details
    print(name, details.licence, details.label_names, details.recipe.num_inference_steps, details.results[0].value)
save_file(found, sys.argv[1] if len(sys.argv) > 1 else "outputs.safetensors")
"""


@pytest.fixture
def hub(hub_server, monkeypatch, tmp_path):
    """This process talks to the server."""
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    return hub_server


def card_of(server, repo_id):
    text = server.repository(repo_id).files()["README.md"].decode()
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_every_family_comes_back_in_a_fresh_process(hub_server, tmp_path):
    pushed = run_client(hub_server, PUSH_ALL, cache=tmp_path / "one")
    assert pushed.returncode == 0, pushed.stderr
    script = f"import sys; sys.argv = ['', {str(tmp_path / 'outputs.safetensors')!r}]\n{PULL_ALL}"
    pulled = run_client(hub_server, script, cache=tmp_path / "two")
    assert pulled.returncode == 0, pulled.stderr
    lines = [f"{name} CC0-1.0 ('one', 'two, zwei', 'three') 3 1.25" for name in TINY]
    assert pulled.stdout.splitlines() == lines
    outputs = load_file(tmp_path / "outputs.safetensors")
    from tests.weights.test_folders import UNUSUAL

    for name in TINY:
        model = lively(name, **UNUSUAL)
        with torch.no_grad():
            torch.testing.assert_close(outputs[name], model(*inputs(model)), rtol=1e-5, atol=1e-6)
        files = hub_server.repository(f"me/{name}").files()
        assert {"README.md", "config.json"} <= set(files)
        assert all(
            re.fullmatch(r"README\.md|config\.json|model.*\.safetensors(\.index\.json)?", file) for file in files
        )


def test_a_pipeline_comes_back(hub):
    strong, weak = tiny().model, lively("dit_ti_2", depth=1)
    recipe = replace(QUICK, guidance=Guidance(scale=2.0, kind="autoguidance"))
    pipe = Pipeline(strong, recipe, label_names=tiny().label_names, weak_model=weak, name="guided")
    address = pipe.push_to_hub("me/guided")
    repository = hub.repository("me/guided")
    assert address == f"{hub.url}/me/guided/commit/{repository.head.id}"
    assert len(repository.commits) == 2  # the Hub's own and ours
    files = repository.files()
    assert sorted(files) == [
        *(".gitattributes" for name in files if name == ".gitattributes"),
        *("README.md", "config.json", "model.safetensors", "samples.png", "weak_model.safetensors"),
    ]
    again = Pipeline.from_pretrained("hf-hub:me/guided")
    assert (again.name, again.recipe, list(again.label_names)) == ("guided", recipe, list(pipe.label_names))
    torch.testing.assert_close(again([3], seed=2).latents, pipe([3], seed=2).latents, rtol=1e-5, atol=1e-5)
    picture = Image.open(io.BytesIO(files["samples.png"]))
    assert picture.width > picture.height > 100  # ten classes beside each other, four of each below


def test_branches_and_commits(hub):
    first, second = lively("dit_ti_2", num_classes=3), lively("dit_ti_2", num_classes=4)
    first.push_to_hub("me/mine", samples=False)
    old = hub.repository("me/mine").head.id
    second.push_to_hub("me/mine", samples=False, revision="more", message="Add a class")
    assert DiT.from_pretrained("hf-hub:me/mine").num_classes == 3
    assert ditzoo.create("hf-hub:me/mine@more").num_classes == 4
    second.push_to_hub("me/mine", samples=False)
    assert ditzoo.create("hf-hub:me/mine").num_classes == 4
    assert ditzoo.create(f"hf-hub:me/mine@{old}").num_classes == 3
    assert ditzoo.create(f"hf-hub:me/mine@{old}", num_classes=7).num_classes == 7


def test_a_new_push_leaves_no_weights_of_the_old_one(hub):
    model = lively("dit_ti_2")
    model.push_to_hub("me/mine", samples=False, max_shard_size=300_000)
    assert "model.safetensors.index.json" in hub.repository("me/mine").files()
    model.push_to_hub("me/mine", samples=False)
    files = hub.repository("me/mine").files()
    assert sorted(set(files) - {".gitattributes"}) == ["README.md", "config.json", "model.safetensors"]
    assert len(hub.repository("me/mine").commits) == 3


def test_the_card_says_what_is_known(hub):
    model = detailed(lively("dit_ti_2", num_classes=3))
    model.push_to_hub("me/mine")
    metadata, body = card_of(hub, "me/mine")
    assert metadata["library_name"] == "ditzoo"
    assert metadata["pipeline_tag"] == "unconditional-image-generation"
    assert metadata["license"] == "cc0-1.0"
    assert "datasets" not in metadata  # "drawings" is no data set of the Hub
    (index,) = metadata["model-index"]
    assert index["name"] == "mine"
    (result,) = index["results"]
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["name"] == "Frechet distance (pixels)"
    assert result["metrics"][0]["value"] == 1.25
    assert "![Samples](samples.png)" in body
    assert 'ditzoo.create("hf-hub:me/mine")' in body
    assert "| Frechet distance (pixels) | 1.25 | digits | 8 samples |" in body
    assert "```bash\npython train.py --steps 3\n```" in body
    assert "| licence | CC0-1.0 |" in body
    assert "| trained on | drawings |" in body


@pytest.mark.parametrize(
    ("licence", "data", "expected"),
    [
        ("Apache-2.0", "ImageNet-1k at 256x256", {"license": "apache-2.0", "datasets": ["ILSVRC/imagenet-1k"]}),
        ("CC-BY-NC-4.0", "me/photographs", {"license": "cc-by-nc-4.0", "datasets": ["me/photographs"]}),
        ("none stated; ask", None, {"license": "other", "license_name": "none-stated-ask"}),
        ("???", "CIFAR-10", {"license": "other", "license_name": "other", "datasets": ["uoft-cs/cifar10"]}),
        (None, None, {}),
    ],
)
def test_metadata_of_licences_and_data(licence, data, expected):
    model = lively("dit_ti_2")
    details = replace(model.details, recipe=replace(QUICK, licence=licence), data=data)
    text = model_card(CardSubject(model=model, details=details), "me/mine")
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert {key: metadata[key] for key in ("license", "license_name", "datasets") if key in metadata} == expected


def test_texts_of_users_do_not_become_markdown():
    model = lively("dit_ti_2")
    details = replace(
        model.details,
        name="`x` # y",
        data="<script>|a|</script>\n---\n# b",
        training_command="echo ```\n```",
        results=(EvaluationResult(metric="a|b", value=1, dataset="[c](d)\n- e: &f !!python/none"),),
    )
    text = model_card(CardSubject(model=model, details=details), "me/mine", caption="<b>\n# c")
    _, metadata, body = text.split("\n---\n", 1)[0], *text.removeprefix("---\n").split("\n---\n", 1)
    (result,) = yaml.safe_load(metadata)["model-index"][0]["results"]
    assert result["dataset"]["name"] == "[c](d)\n- e: &f !!python/none"
    assert "\n# " not in body.removeprefix("\n# mine").replace("\n# mine", "", 1)
    assert "<script>" not in body
    assert "<b>" not in body
    assert r"a\|b" in body
    assert "````bash\necho ```\n```\n````" in body


def test_results_of_one_data_set_keep_their_own_settings():
    model = lively("dit_ti_2")
    results = tuple(
        EvaluationResult(metric="FID-50K", value=value, dataset="ImageNet-1k at 256x256", settings=settings, source=by)
        for value, settings, by in [(2.27, "guidance 1.5", "table 4"), (9.62, "no guidance", "")]
    )
    text = model_card(CardSubject(model=model, details=replace(model.details, results=results)), "me/mine")
    (result,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert result["task"] == {"type": "unconditional-image-generation"}
    assert result["dataset"] == {"type": "ILSVRC/imagenet-1k", "name": "ImageNet-1k at 256x256"}
    assert result["metrics"] == [
        {
            "type": "fid_50k",
            "name": "FID-50K",
            "value": 2.27,
            "args": {"settings": "guidance 1.5", "source": "table 4"},
        },
        {"type": "fid_50k", "name": "FID-50K", "value": 9.62, "args": {"settings": "no guidance"}},
    ]


def test_the_card_says_in_which_precision_the_weights_travel(hub):
    model = lively("dit_ti_2")
    model.push_to_hub("me/mine", samples=False, dtype=torch.bfloat16)
    assert "| parameters | 329,988, in bfloat16 |" in card_of(hub, "me/mine")[1]
    assert ditzoo.create("hf-hub:me/mine").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("num_classes", "columns"),
    [(1, 10 * [0]), (3, [0, 0, 0, 1, 1, 1, 2, 2, 2]), (10, [*range(10)]),
     (1000, [0, 111, 222, 333, 444, 555, 666, 777, 888, 999])],
)  # fmt: skip
def test_columns_of_the_samples(num_classes, columns):
    assert sharing._columns(num_classes) == columns


def test_the_samples_are_a_grid_of_classes(hub):
    for num_classes, size, caption in [
        (3, (9 * 66 - 2, 4 * 66 - 2), "Classes, from left to right: one, two, three."),
        (0, (10 * 66 - 2, 4 * 66 - 2), ""),
    ]:
        model = detailed(lively("dit_ti_2", num_classes=num_classes))
        if not num_classes:
            unguided = replace(model.details.recipe, guidance=Guidance(scale=1.0))
            model.details = replace(model.details, label_names=None, recipe=unguided)
        model.push_to_hub("me/mine")
        picture = Image.open(io.BytesIO(hub.repository("me/mine").files()["samples.png"]))
        assert picture.size == size
        assert picture.info.get("Description", "") == caption
        assert f"![Samples](samples.png)\n\n{caption}".strip() in card_of(hub, "me/mine")[1]


# Cards and pictures that are there already.


def push_again(folder, *options):
    with pytest.raises(SystemExit) as stop:
        cli.main(["push", str(folder), "me/other", "--no-draw", *options])
    assert stop.value.code == 0


def test_a_card_that_was_pulled_is_made_anew(hub, tmp_path):
    detailed(lively("dit_ti_2", num_classes=3)).push_to_hub("me/mine")
    sharing.pull("me/mine", tmp_path / "pulled")
    before = (tmp_path / "pulled" / "README.md").read_text()
    assert is_generated(before)
    push_again(tmp_path / "pulled", "--licence", "MIT")
    metadata, body = card_of(hub, "me/other")
    assert metadata["license"] == "mit"
    assert "| licence | MIT |" in body
    assert "me/mine" not in body
    assert "Classes, from left to right: one, two, three." in body  # the picture says what it shows
    assert (tmp_path / "pulled" / "README.md").read_text() == before


def test_a_card_that_was_edited_is_kept(hub, tmp_path, caplog):
    detailed(lively("dit_ti_2", num_classes=3)).push_to_hub("me/mine", samples=False)
    sharing.pull("me/mine", tmp_path / "pulled")
    card = tmp_path / "pulled" / "README.md"
    edited = card.read_text().replace("# mine", "# Mine, with love")
    card.write_text(edited)
    push_again(tmp_path / "pulled")
    assert caplog.text == ""
    push_again(tmp_path / "pulled", "--licence", "MIT")
    assert hub.repository("me/other").files()["README.md"].decode() == edited
    assert "README.md stays as it is: write the new licence and results into it." in caplog.text


def test_a_card_that_somebody_wrote_on_the_hub_is_kept(hub, caplog):
    theirs = {"README.md": b"# By hand", "samples.png": b"theirs", "LICENSE": b"MIT"}
    hub.create("me/mine", theirs)
    model = detailed(lively("dit_ti_2", num_classes=3))
    for revision in (None, "branch"):
        model.push_to_hub("me/mine", samples=False, revision=revision)
        files = hub.repository("me/mine").files(revision or "main")
        assert {name: files[name] for name in theirs} == theirs
        assert "README.md of me/mine is one that somebody wrote, and stays as it is. Delete it there" in caplog.text
    assert ditzoo.create("hf-hub:me/mine").details == model.details


def test_samples_of_other_weights_do_not_stay(hub):
    model = detailed(lively("dit_ti_2", num_classes=3))
    model.push_to_hub("me/mine")
    assert "samples.png" in hub.repository("me/mine").files()
    model.push_to_hub("me/mine", samples=False)
    assert sorted(hub.repository("me/mine").files()) == ["README.md", "config.json", "model.safetensors"]


def test_pictures_are_checked_and_made_png(hub, tmp_path):
    model = lively("dit_ti_2")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "mine.jpg")
    model.push_to_hub("me/mine", samples=tmp_path / "mine.jpg")
    picture = Image.open(io.BytesIO(hub.repository("me/mine").files()["samples.png"]))
    assert (picture.format, picture.size) == ("PNG", (9, 9))
    (tmp_path / "mine.jpg").write_text("red")
    with pytest.raises(ValueError, match=r"mine\.jpg cannot be read as a picture for the card; give a PNG or JPEG"):
        model.push_to_hub("me/none", samples=tmp_path / "mine.jpg")
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*none\.png for the card; give another, or"):
        model.push_to_hub("me/none", samples=tmp_path / "none.png")
    assert "me/none" not in hub.store.repositories


def test_a_licence_that_cannot_be_written_down(hub, tmp_path):
    model = lively("dit_ti_2")
    model.details = replace(model.details, recipe=None)
    model.save_pretrained(tmp_path)
    for licence, message in [
        ("MIT", "has no recipe, which is what carries the licence 'MIT'"),
        (" ", "is empty; give"),
    ]:
        with pytest.raises(ValueError, match=message):
            sharing.push_saved(tmp_path, "me/mine", licence=licence)
    assert hub.requests == []


def test_samples_are_left_out_given_or_asked_for(hub, tmp_path, caplog):
    model = detailed(lively("dit_ti_2", num_classes=3))
    Image.new("RGB", (9, 9), "red").save(tmp_path / "mine.png")
    model.push_to_hub("me/given", samples=tmp_path / "mine.png")
    assert hub.repository("me/given").files()["samples.png"] == (tmp_path / "mine.png").read_bytes()
    model.push_to_hub("me/without", samples=False)
    assert "samples.png" not in hub.repository("me/without").files()
    assert "![Samples]" not in card_of(hub, "me/without")[1]
    model.details = replace(model.details, recipe=None)
    model.push_to_hub("me/unknown")
    assert "samples.png" not in hub.repository("me/unknown").files()
    with pytest.raises(ValueError, match=r"samples cannot be drawn without a recipe: set model\.details, or leave"):
        model.push_to_hub("me/asked", samples=True)
    assert "me/asked" not in hub.store.repositories


def test_slow_samples_are_not_drawn_unasked():
    large = replace(QUICK, num_inference_steps=1000)
    with torch.device("meta"):
        model = ditzoo.create("dit_xl_2")
    subject = CardSubject(model=model, details=replace(model.details, recipe=large))
    assert not sharing._is_drawn(subject, asked=False)
    assert sharing._is_drawn(subject, asked=True)


def test_the_mode_of_the_model_stays(hub):
    model = detailed(lively("dit_ti_2", num_classes=3)).train()
    model.push_to_hub("me/mine")
    assert model.training


def test_commands_push_and_pull(hub, tmp_path, capsys):
    model = detailed(lively("dit_ti_2", num_classes=3))
    model.save_pretrained(tmp_path / "saved", max_shard_size=300_000)
    (tmp_path / "saved" / "optimizer.pt").write_bytes(b"large")
    with pytest.raises(SystemExit) as stop:
        cli.main(["push", str(tmp_path / "saved"), "me/mine", "--no-draw", "--licence", "MIT", "--private"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{hub.url}/me/mine/commit/{hub.repository('me/mine').head.id}\n"
    assert hub.repository("me/mine").private
    assert "optimizer.pt" not in hub.repository("me/mine").files()
    assert card_of(hub, "me/mine")[0]["license"] == "mit"
    with pytest.raises(SystemExit) as stop:
        cli.main(["pull", "me/mine", str(tmp_path / "pulled")])
    assert stop.value.code == 0
    assert "ditzoo sample" in capsys.readouterr().out
    again = DiT.from_pretrained(tmp_path / "pulled")
    assert again.details == replace(model.details, recipe=replace(model.details.recipe, licence="MIT"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert (tmp_path / "pulled" / "README.md").is_file()
    with pytest.raises(SystemExit) as stop:
        cli.main(["pull", "me/mine", str(tmp_path / "pulled")])
    assert stop.value.code == 2
    assert "exists and is no empty folder; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["model", "weak_model"])
def test_what_does_not_load_is_not_pushed_or_pulled(hub, tmp_path, stem):
    pipe = Pipeline(tiny().model, QUICK, weak_model=lively("dit_ti_2", depth=1))
    pipe.push_to_hub("me/broken", samples=False)
    pipe.save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / f"{stem}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged or cut off"):
        sharing.push_saved(tmp_path / "saved", "me/mine")
    assert "me/mine" not in hub.store.repositories
    hub.repository("me/broken").commit({weights.name: Blob(weights.read_bytes(), is_large=True)})
    with pytest.raises(ValueError, match="is damaged or cut off"):
        sharing.pull("me/broken", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("name", ["samples.png", "README.md", "LICENSE", "more.safetensors"])
def test_what_a_link_leads_to_is_not_pushed(hub, tmp_path, name):
    """A folder from a stranger could publish any file of its user."""
    lively("dit_ti_2").save_pretrained(tmp_path / "saved")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "saved" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=rf"{name} is a link that leads out of its folder, to {tmp_path}/secret,"):
        sharing.push_saved(tmp_path / "saved", "me/mine", samples=False)
    assert "me/mine" not in hub.store.repositories
    (tmp_path / "saved" / name).unlink()
    (tmp_path / "saved" / name).symlink_to("mine")
    (tmp_path / "saved" / "mine").write_text("mine")
    sharing.push_saved(tmp_path / "saved", "me/mine", samples=False)
    assert hub.repository("me/mine").files()[name] == b"mine"


def test_a_weak_model_that_does_not_load_is_not_pulled(hub, tmp_path):
    tiny().save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["weak_model"] = {"model_cls": config["model_cls"], "model": config["model"]}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    hub.create("me/mine", {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()})
    with pytest.raises(OSError, match=r"weak_model\.safetensors is missing"):
        sharing.pull("me/mine", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_card_that_is_there_is_kept(hub, tmp_path):
    lively("dit_ti_2").save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# My own words\n")
    sharing.push_saved(tmp_path, "me/mine", samples=False)
    assert hub.repository("me/mine").files()["README.md"] == b"# My own words\n"


def test_results_of_a_benchmark_reach_the_card(hub, tmp_path, capsys):
    rows = [row for row in read_rows(QUICK_RESULTS)[0] if row.name == "dit_ti_2"]
    model = ditzoo.create("dit_ti_2", **rows[0].config)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(SystemExit):
        cli.main(["push", str(tmp_path / "saved"), "me/mine", "--no-draw", "--results", str(QUICK_RESULTS)])
    metrics = {
        metric["name"]: metric["value"]
        for result in card_of(hub, "me/mine")[0]["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert metrics == {
        "Frechet distance (ditzoo digits classifier v1)": rows[0].values["frechet_distance"].value,
        "accuracy (ditzoo digits classifier v1)": rows[0].values["accuracy"].value,
    }
    assert DiT.from_pretrained("hf-hub:me/mine").details.results == results_for(QUICK_RESULTS, DiT, model.config)
    with pytest.raises(ValueError, match=r"has no row of a model with this configuration; its rows: mdtv2_ti_2, "):
        results_for(QUICK_RESULTS, DiT, {**model.config, "depth": 9})
    for row in (rows[0], replace(rows[0], seed=1), replace(rows[0], name="of_another_package_ti_2")):
        write_row(tmp_path / "results.jsonl", row)
    with pytest.raises(ValueError, match=r"has 2 rows of models with this configuration \(dit_ti_2 with seed 0, "):
        results_for(tmp_path / "results.jsonl", DiT, model.config)


def test_a_repository_that_holds_no_model(hub):
    hub.create("me/other", {"config.json": b'{"architectures": ["Bert"]}', "model.safetensors": b"x"})
    with pytest.raises(ValueError, match=r"config\.json lacks model, model_cls: it is not what save_pretrained"):
        ditzoo.create("hf-hub:me/other")
    hub.create("me/pickle", {"model.pt": b"x", "modeling.py": b"raise SystemExit"})
    with pytest.raises(DownloadError, match=r"me/pickle was not fetched: it holds no file config\.json or"):
        ditzoo.create("hf-hub:me/pickle")
    assert hub.asked("GET", r"modeling\.py|model\.pt") == []
    hub.create("me/pipeline", {"model_index.json": b"{}", "transformer/diffusion_pytorch_model.safetensors": b"x"})
    message = (
        r"hf-hub:me/pipeline holds a pipeline of diffusers: ditzoo\.Pipeline\.from_diffusers\('me/pipeline'\) reads"
    )
    with pytest.raises(ValueError, match=message):
        ditzoo.create("hf-hub:me/pipeline")
    assert hub.asked("GET", "/storage/") == []  # no weights were fetched to find that out


def test_models_in_folders_of_a_repository_are_not_fetched(hub):
    lively("dit_ti_2").push_to_hub("me/mine", samples=False)
    hub.repository("me/mine").commit({"step-100/model.safetensors": Blob(b"large", is_large=True)})
    ditzoo.create("hf-hub:me/mine")
    assert len(hub.asked("GET", "/storage/")) == 1
    assert hub.asked("HEAD", "step-100") == []


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:alone", "hf-hub:a/b@", "hf-hub:me/../x"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="hf-hub:user/repo"):
        ditzoo.create(name)


def test_a_checkpoint_beside_a_repository_has_no_place():
    with pytest.raises(ValueError, match=r"has weights of its own, so that checkpoint 'x\.pt' has no place"):
        ditzoo.create("hf-hub:me/mine", checkpoint="x.pt")


def test_tokens_appear_nowhere(hub_server, tmp_path):
    """Nor in what a failure prints."""
    code = f"""
import logging
from dataclasses import replace
from tests.weights.test_folders import detailed
from tests.zoo import lively
logging.basicConfig(level=logging.DEBUG)
model = detailed(lively("dit_ti_2", num_classes=3))
model.details = replace(model.details, training_command="train.py --token {TOKEN}", data="{TOKEN}")
model.push_to_hub("me/mine", samples=False)
try:
    model.push_to_hub("other/mine", samples=False, token="{TOKEN}")
except OSError as error:
    print("refused", error)
"""
    done = run_client(hub_server, code, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    for data in hub_server.repository("me/mine").files().values():
        assert TOKEN.encode() not in data
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_examples_of_the_page_run(hub_server, tmp_path):
    prepare = """
import os
from huggingface_hub import HfApi
from tests.weights.test_folders import detailed
from tests.zoo import lively
model = detailed(lively("dit_ti_2", num_classes=3))
model.push_to_hub("user/repo")
HfApi().create_tag("user/repo", tag="v1.0")
"""
    hub_server.add_user("hf_" + "uSeR" * 9, "user")
    made = run_client(hub_server, prepare, cache=tmp_path / "one", token="hf_" + "uSeR" * 9)
    assert made.returncode == 0, made.stderr
    code = "\n".join(blocks_of("docs/hub.md", "py"))
    environment = client_environment(hub_server, cache=tmp_path / "two")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples.png").is_file()
    assert json.loads((tmp_path / "my-dit" / "config.json").read_text())["data"] == "me/my-photographs"
    assert hub_server.repository("me/my-dit").private is False
