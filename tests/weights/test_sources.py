"""`create` with weights from files, folders, addresses and the Hub: the original's numbers, or an error that helps."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo.models import DiffusionTransformer, DiT, PublishedFile
from ditzoo.models.digits import DIGITS_DATA
from ditzoo.pipeline import Pipeline
from ditzoo.weights import DownloadError, catalogue, save_weights
from tests.golden_cases import CASES, golden_case, relative_error
from tests.hub_server import use_hub
from tests.weights.file_server import serving
from tests.zoo import TINY, inputs, lively


def same(model, other):
    return model.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()
    )


@pytest.fixture
def dit(tmp_path):
    """A DiT, and its official file."""
    model = lively("dit_ti_2")
    torch.save(model.state_dict(), tmp_path / "official.pt")
    return model, tmp_path / "official.pt"


@pytest.mark.parametrize("case", CASES)
def test_official_files_give_the_official_outputs(case, tmp_path):
    golden = golden_case(case)
    kind = golden.model_cls.__name__
    name = next(name for name in ditzoo.list_models() if ditzoo.model_info(name).model_cls == kind)
    torch.save({"ema": golden.state, "model": {}, "opt": {}}, tmp_path / "official.pt")
    model = ditzoo.create(name, checkpoint=tmp_path / "official.pt", **golden.options)
    arguments = [golden[key] for key in ("in.x", "in.t", "in.y") if key in golden.tensors]
    with torch.no_grad():
        assert relative_error(model(*arguments), golden["out.forward"]) < golden.tolerance()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "shards", "folder", "wrapped"])
def test_every_kind_of_file(name, kind, tmp_path):
    model = lively(name)
    state = model.state_dict()
    path = tmp_path / "weights"
    if kind == "safetensors":
        path = save_weights(state, path)[0]
    elif kind == "shards":
        path = save_weights(state, path, max_shard_size=300_000)[-1]
    elif kind == "folder":
        model.save_pretrained(path)
    else:
        torch.save({f"module.{key}": value for key, value in state.items()} if kind == "wrapped" else state, path)
    loaded = ditzoo.create(name, checkpoint=path)
    assert same(loaded, model)
    assert loaded.load_result.is_exact
    assert loaded.details.name == name


def test_the_nest_that_is_asked_for(tmp_path, caplog):
    average, last = lively("dit_ti_2"), ditzoo.create("dit_ti_2")
    both, raw = tmp_path / "both.pt", tmp_path / "raw.pt"
    torch.save({"ema": average.state_dict(), "model": last.state_dict()}, both)
    torch.save({"model": last.state_dict()}, raw)
    for weights, expected, nest in (("ema", average, "ema"), ("raw", last, "model"), (None, average, "ema")):
        model = ditzoo.create("dit_ti_2", checkpoint=both, weights=weights)
        assert same(model, expected)
        assert model.load_result.nest == nest
    assert caplog.text == ""
    assert same(ditzoo.create("dit_ti_2", checkpoint=raw), last)
    assert "raw.pt has no averaged weights; those of the last step, under 'model', are taken." in caplog.text
    with pytest.raises(ValueError, match=r"raw\.pt holds no averaged weights; those of the last step are under 'm"):
        ditzoo.create("dit_ti_2", checkpoint=raw, weights="ema")
    torch.save({"ema": average.state_dict()}, raw)
    with pytest.raises(ValueError, match=r"raw\.pt holds averaged weights alone, under 'ema'"):
        ditzoo.create("dit_ti_2", checkpoint=raw, weights="raw")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_precision_of_the_file_stays_unless_another_is_asked_for(dtype, tmp_path, dit):
    path = save_weights(dit[0].state_dict(), tmp_path, dtype=dtype)[0]
    assert ditzoo.create("dit_ti_2", checkpoint=path).dtype == dtype
    again = ditzoo.create("dit_ti_2", checkpoint=path, dtype=torch.float32)
    assert again.dtype == torch.float32
    assert torch.equal(again.pos_embed, dit[0].pos_embed.to(dtype).float())
    assert not again.pos_embed.requires_grad


def test_loaded_weights_can_be_trained_and_leave_the_file_alone(dit):
    before = dit[1].read_bytes()
    model = ditzoo.create("dit_ti_2", checkpoint=dit[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x, t, y = inputs(model)
    model(x, t, y).square().mean().backward()
    optimizer.step()
    assert not same(model, dit[0])
    assert dit[1].read_bytes() == before
    assert same(ditzoo.create("dit_ti_2", checkpoint=dit[1]), dit[0])


def test_other_classes_and_sizes_keep_what_fits(dit, caplog):
    model = ditzoo.create("dit_ti_2", checkpoint=dit[1], num_classes=4, input_size=16)
    table, old = model.y_embedder.embedding_table.weight, dit[0].y_embedder.embedding_table.weight
    assert torch.equal(table, torch.cat([old[:4], old[10:]]))
    assert set(model.load_result.resized) == {"y_embedder.embedding_table.weight", "pos_embed"}
    assert model.load_result.reinitialized == ()
    assert "y_embedder.embedding_table.weight (11x64 -> 5x64" in caplog.text
    channels = ditzoo.create("dit_ti_2", checkpoint=dit[1], in_channels=3)
    fresh = {"x_embedder.proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"}
    assert set(channels.load_result.reinitialized) == fresh
    assert torch.equal(channels.blocks[0].attn.qkv.weight, dit[0].blocks[0].attn.qkv.weight)


def test_without_asking_nothing_is_adapted(tmp_path):
    torch.save(lively("dit_ti_2", num_classes=4).state_dict(), tmp_path / "four.pt")
    with pytest.raises(ValueError, match=r"four\.pt: the weights do not fit this DiT: .* They are for num_classes=4"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "four.pt")
    assert ditzoo.create("dit_ti_2", checkpoint=tmp_path / "four.pt", num_classes=4).load_result.is_exact
    wider = ditzoo.create("dit_ti_2", checkpoint=tmp_path / "four.pt", num_classes=6)  # told by the file's shapes
    assert wider.load_result.resized["y_embedder.embedding_table.weight"].startswith("5x64 -> 7x64")


def test_strict_can_be_left_out(dit, tmp_path):
    state = dit[0].state_dict()
    del state["final_layer.linear.bias"]
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: .*missing final_layer\.linear\.bias; unexpected extra"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "odd.pt")
    result = ditzoo.create("dit_ti_2", checkpoint=tmp_path / "odd.pt", strict=False).load_result
    assert (result.reinitialized, result.dropped) == (("final_layer.linear.bias",), ("extra",))


def test_weights_of_another_family_say_so(dit):
    with pytest.raises(ValueError, match=r"official\.pt: the weights do not fit this UViT: .*They fit dit_ti_2"):
        ditzoo.create("uvit_ti_2", checkpoint=dit[1])
    torch.save(lively("mdt_ti_2", depth=4).state_dict(), dit[1])
    with pytest.raises(ValueError, match=r"They look like those of MDT\."):
        ditzoo.create("dit_ti_2", checkpoint=dit[1])


def test_folders_of_another_network_say_so(tmp_path):
    lively("dit_ti_2", num_heads=2).save_pretrained(tmp_path / "heads")
    fix = "holds the weights of a network with num_heads=2, and dit_ti_2 has num_heads=4. .*, num_heads=2. takes them "
    with pytest.raises(ValueError, match=rf"{fix}as they are\.$"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "heads")
    assert ditzoo.create("dit_ti_2", checkpoint=tmp_path / "heads", num_heads=2).load_result.is_exact
    with pytest.raises(ValueError, match=r"model\.safetensors holds the weights of a network with num_heads=2"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "heads" / "model.safetensors")
    with pytest.raises(ValueError, match="are for num_heads=2, the model has num_heads=1: weights adapt to"):
        DiffusionTransformer.from_pretrained(tmp_path / "heads", num_heads=1)
    with pytest.raises(ValueError, match="are for num_heads=4, the model has num_heads=1: weights adapt to"):
        ditzoo.create("dit_ti_2", pretrained=True, num_heads=1)
    (tmp_path / "heads" / "config.json").write_text('{"another": "library"}')
    assert ditzoo.create("dit_ti_2", checkpoint=tmp_path / "heads" / "model.safetensors").load_result.is_exact
    # As many rows as ten classes and the null label have.
    eleven = lively("dit_ti_2", num_classes=11, class_dropout_prob=0.0)
    eleven.save_pretrained(tmp_path / "eleven")
    with pytest.raises(
        ValueError, match=r"with num_classes=11, class_dropout_prob=0\.0, and dit_ti_2 has num_classes=10,"
    ):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "eleven")
    ten = ditzoo.create("dit_ti_2", checkpoint=tmp_path / "eleven", num_classes=10)
    table, old = (model.y_embedder.embedding_table.weight for model in (ten, eleven))
    assert torch.equal(table[:10], old[:10])
    assert not torch.equal(table[10], old[10])


def test_folders_of_another_class_say_so(tmp_path):
    lively("uvit_ti_2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a UViT, and dit_ti_2 is a DiT: .*from_pretrained\(folder\)"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path)


def test_a_folder_brings_its_own_details(tmp_path):
    model = ditzoo.create("dit_ti_2", pretrained=True)
    model.save_pretrained(tmp_path)
    assert ditzoo.create("dit_ti_2", checkpoint=tmp_path).details == model.details
    assert model.details.data == DIGITS_DATA
    fewer = ditzoo.create("dit_ti_2", checkpoint=tmp_path, num_classes=3)
    assert fewer.details == replace(model.details, label_names=None)
    fewer.save_pretrained(tmp_path / "fewer")
    assert same(DiffusionTransformer.from_pretrained(tmp_path / "fewer"), fewer)


def test_a_file_of_another_width_and_other_classes(tmp_path):
    narrow = {"hidden_size": 32, "num_heads": 2}
    torch.save(lively("dit_ti_2", **narrow).state_dict(), tmp_path / "narrow.pt")
    model = ditzoo.create("dit_ti_2", checkpoint=tmp_path / "narrow.pt", **narrow, num_classes=3)
    assert set(model.load_result.resized) == {"y_embedder.embedding_table.weight"}


def test_weights_that_a_folder_or_a_name_has_not(tmp_path):
    for_ema = r"averaged (weights|ones) alone.*; ask for those \(weights='ema'\)"
    with pytest.raises(ValueError, match=f"the weights of dit_ti_2.digits are {for_ema}"):
        ditzoo.create("dit_ti_2", pretrained=True, weights="raw")
    ditzoo.create("dit_ti_2", pretrained=True, weights="ema").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"model holds {for_ema}"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "model", weights="raw")
    torch.save(lively("dit_ti_2").state_dict(), tmp_path / "bare.pt")
    for weights, told in ((None, "ema"), ("ema", "ema"), ("raw", "raw")):  # nobody but the caller can tell
        model = ditzoo.create("dit_ti_2", checkpoint=tmp_path / "bare.pt", weights=weights)
        assert model.details.recipe.weights == told


def diffusers_folder(model, folder):
    from ditzoo.interop import save_diffusers
    from ditzoo.models.digits import DIGITS_RECIPE

    with pytest.warns(UserWarning, match="deviates"):
        save_diffusers(model, folder, DIGITS_RECIPE)
    return folder


def test_folders_of_diffusers(tmp_path, dit):
    folder = diffusers_folder(dit[0], tmp_path / "pipeline")
    transformer = folder / "transformer"
    for path in (folder, transformer, transformer / "diffusion_pytorch_model.safetensors"):
        assert same(ditzoo.create("dit_ti_2", checkpoint=path), dit[0])
    alone = shutil.copy(transformer / "diffusion_pytorch_model.safetensors", tmp_path / "alone.safetensors")
    assert same(ditzoo.create("dit_ti_2", checkpoint=alone), dit[0])
    other = ditzoo.create("dit_ti_2", checkpoint=folder, num_classes=3)
    assert set(other.load_result.resized) == {"y_embedder.embedding_table.weight"}
    with pytest.raises(ValueError, match="holds a DiT, and uvit_ti_2 is a UViT"):
        ditzoo.create("uvit_ti_2", checkpoint=folder)


def test_weights_behind_an_address(dit):
    with serving(dit[1].read_bytes()) as server:
        assert same(ditzoo.create("dit_ti_2", checkpoint=server.url), dit[0])
        assert same(ditzoo.create("dit_ti_2", checkpoint=server.url), dit[0])
        assert len([asked for asked in server.requests if "range" not in asked]) == 1  # then from the cache


def test_published_weights_are_fetched_once_and_their_licence_is_told(published, dit, caplog, monkeypatch):
    monkeypatch.setattr(catalogue, "_noted", set())
    with serving(dit[1].read_bytes()) as server:
        name = published(PublishedFile(name="saved.pt", url=server.url))
        model = ditzoo.create(name, pretrained=True)
        assert same(model, dit[0])
        assert same(ditzoo.create("dit_ti_2", pretrained=True, num_classes=10), dit[0])
        server.plan = [404]
        assert same(ditzoo.create(name, pretrained=True), dit[0])
    assert model.details.name == name
    assert model.details.licence == "none"


@pytest.mark.parametrize("name", ["dit_xl_2.in256", "diffit_xl_2.in512"])
def test_a_non_commercial_licence_is_logged_once_on_loading(name, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "_noted", set())
    small = {"depth": 1, "hidden_size": 32, "num_heads": 2, "num_classes": 3}
    torch.save(lively(name, **small).state_dict(), tmp_path / "small.pt")
    for _ in range(2):
        ditzoo.create(name, checkpoint=tmp_path / "small.pt", **small)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"The weights of {name} are under CC-BY-NC" in caplog.text


def test_the_licence_of_a_folder_is_logged_once(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "_noted", set())
    model = lively("dit_ti_2")
    recipe = replace(model.details.recipe, licence="CC-BY-NC-4.0")
    model.details = replace(model.details, name="my-copy", recipe=recipe)
    model.save_pretrained(tmp_path)
    ditzoo.create("dit_ti_2", checkpoint=tmp_path)
    DiffusionTransformer.from_pretrained(tmp_path)
    Pipeline.from_pretrained(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "The weights of my-copy are under CC-BY-NC-4.0, which allows no commercial use."
    ]


def test_files_and_folders_of_the_hub(hub_server, monkeypatch, tmp_path, dit):
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    hub_server.create("me/official", {"deep/weights.pt": dit[1].read_bytes()})
    assert same(ditzoo.create("dit_ti_2", checkpoint="hf-hub:me/official/deep/weights.pt"), dit[0])
    head = hub_server.repository("me/official").head.id
    assert same(ditzoo.create("dit_ti_2", checkpoint=f"hf-hub:me/official/deep/weights.pt@{head}"), dit[0])
    folder = diffusers_folder(dit[0], tmp_path / "pipeline")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub_server.create("me/pipeline", {**files, "vae/diffusion_pytorch_model.safetensors": b"large", "x.py": b"evil"})
    assert same(ditzoo.create("dit_ti_2", checkpoint="hf-hub:me/pipeline"), dit[0])
    assert hub_server.asked("GET", r"vae/.*safetensors|x\.py") == []
    lively("dit_ti_2").push_to_hub("me/mine", samples=False)
    assert same(ditzoo.create("dit_ti_2", checkpoint="hf-hub:me/mine"), dit[0])
    assert same(ditzoo.create("hf-hub:me/mine", weights="ema"), dit[0])
    with pytest.raises(ValueError, match="hf-hub:me/mine holds averaged weights alone, by its recipe; ask for those"):
        ditzoo.create("hf-hub:me/mine", weights="raw")
    with pytest.raises(DownloadError, match="me/nothing"):
        ditzoo.create("dit_ti_2", checkpoint="hf-hub:me/nothing/weights.pt")


def test_the_pickle_of_an_old_pipeline_is_taken_where_there_is_nothing_else(hub_server, monkeypatch, tmp_path, dit):
    from safetensors.torch import load_file

    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    folder = diffusers_folder(dit[0], tmp_path / "pipeline")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub_server.create("me/old", files)
    assert same(ditzoo.create("dit_ti_2", checkpoint="hf-hub:me/old"), dit[0])


def test_weights_that_are_no_numbers_load_with_a_warning(dit, tmp_path):
    state = dit[0].state_dict()
    state["final_layer.linear.bias"][0] = torch.inf
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.warns(UserWarning, match=r"odd\.safetensors has NaN or infinite values in 1 of 52 tensors \(final"):
        ditzoo.create("dit_ti_2", checkpoint=tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        ("nothing.pt", FileNotFoundError, r"there is no file nothing\.pt\. Check the path"),
        ("hf-hub:alone", ValueError, "is no name on the Hub; write hf-hub:user/repo"),
        ("ftp://me:SECRET@example.org/a.pt", ValueError, r"^ftp://example\.org/a\.pt cannot be fetched"),
        ("HTTPS://me:SECRET@example.org/a.pt", ValueError, r"^https://example\.org/a\.pt was given with a .* password"),
        ("", ValueError, "checkpoint is empty; give a file, a folder or an address"),
    ],
)
def test_places_that_are_none(checkpoint, error, message):
    with pytest.raises(error, match=message):
        ditzoo.create("dit_ti_2", checkpoint=checkpoint)


def test_wrong_options_are_told_before_anything_is_fetched(published):
    name = published(PublishedFile(name="saved.pt", url="http://127.0.0.1:9/saved.pt"))
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        ditzoo.create(name, pretrained=True, depth=0)
    with pytest.raises(TypeError, match="has no option 'num_clases'"):
        ditzoo.create(name, pretrained=True, num_clases=3)
    with pytest.raises(ValueError, match="weights must be 'ema', 'raw' or None, got 'best'"):
        ditzoo.create(name, pretrained=True, weights="best")


def test_from_pretrained_is_for_folders_and_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json: give a folder that save_pretrained"):
        DiffusionTransformer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no dit_ti_2\.digits/config\.json: give a folder"):
        DiT.from_pretrained("dit_ti_2.digits")
