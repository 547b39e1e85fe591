"""The network and recipe that settings and data make."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ditzoo
from ditzoo.bench import QUICK
from ditzoo.data.source import TensorSource
from ditzoo.recipe import Recipe
from ditzoo.train.config import make_config
from ditzoo.train.network import meta_network, network_options, open_data, run_recipe
from tests.hub_server import HubServer, use_hub


def source(shape: tuple[int, int, int] = (3, 16, 16), num_classes: int = 5) -> TensorSource:
    labels = torch.zeros(2, dtype=torch.int64) if num_classes else None
    return TensorSource(torch.zeros(2, *shape), labels, name="two pictures", num_classes=num_classes)


def options(settings: dict[str, Any], data: TensorSource) -> dict[str, Any]:
    config = make_config(settings)
    return network_options(config, meta_network(config), data)


def test_the_network_has_the_datas_channels_classes_and_side() -> None:
    found = options({"model": "dit_ti_2", "model_options": {"depth": 2}}, source())
    assert found == {"depth": 2, "in_channels": 3, "num_classes": 5, "input_size": 16}
    assert options({"model": "dit_ti_2"}, source((1, 8, 8), 10)) == {}
    assert options({"model": "dit_ti_2"}, source((1, 8, 12), 10)) == {}
    assert options({"model": "dit_ti_2", "num_classes": 37}, source((1, 8, 8))) == {"num_classes": 37}
    assert options({"model": "dit_ti_2", "num_classes": 0}, source((1, 8, 8))) == {"num_classes": 0}
    assert options({"model": "dit_ti_2"}, source((1, 8, 8), 0)) == {"num_classes": 0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 3}, "num_classes is 3, and two pictures has 5 classes; set it to 5 or more, or to 0"),
        ({"model_options": {"num_classes": 3}}, "num_classes is 3, and two pictures has 5 classes"),
        ({"model_options": {"in_channels": 1}}, "has in_channels=1, and two pictures has 3 channels; leave it out"),
        ({"model_options": {"input_size": 8}}, "has input_size=8, and two pictures has a side of 16; leave it out"),
        ({"model": "dit_s_2"}, "dit_s_2 sees latents of 4 channels, and two pictures has 3; give the latents"),
    ],
)
def test_settings_and_data_that_contradict_each_other_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options({"model": "dit_ti_2", **settings}, source())


def test_labels_that_are_not_there_are_not_learned() -> None:
    with pytest.raises(ValueError, match="num_classes is 3, and two pictures has no labels; set num_classes to 0"):
        options({"num_classes": 3}, source(num_classes=0))


def test_a_latent_model_trains_on_pixels_if_told() -> None:
    found = options({"model": "dit_s_2", "model_options": {"in_channels": 3}}, source())
    assert found == {"in_channels": 3, "num_classes": 5, "input_size": 16}


def test_the_digits_are_opened() -> None:
    config = make_config()
    data = open_data(config, meta_network(config))
    assert (len(data), data.shape, data.num_classes) == (1_297, (1, 8, 8), 10)
    config = make_config({"preset": "dit_xl_2.in256"})
    with pytest.raises(ValueError, match=r"data is not given, and preset 'dit_xl_2.in256' does not know where yours"):
        open_data(config, meta_network(config))


def test_images_are_cropped_to_what_the_network_sees(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name / "1.png")
    for settings, shape in (
        ({"model": "dit_ti_2"}, (1, 8, 8)),
        ({"model": "dit_ti_2", "size": 16, "model_options": {"in_channels": 3}}, (3, 16, 16)),
        ({"model": "dit_ti_2", "buckets": "24x16"}, (1, 24, 16)),
    ):
        config = make_config({**settings, "data": str(tmp_path)})
        data = open_data(config, meta_network(config))
        assert (data.shape, data.num_classes) == (shape, 2)
    config = make_config({"model": "dit_ti_2", "num_classes": 0, "data": str(tmp_path)})
    assert open_data(config, meta_network(config)).num_classes == 0


def test_the_tiny_models_train_as_in_the_quick_benchmark() -> None:
    for name in QUICK.default_models():
        model = meta_network(make_config({"preset": f"{name}.digits"}))
        assert run_recipe(make_config({"preset": f"{name}.digits"}), model, latents=False) == QUICK.recipe_for(
            name, model
        )


def test_a_recipe_fits_what_the_network_predicts() -> None:
    config = make_config({"model": "dit_s_2"})
    latent = run_recipe(config, meta_network(config), latents=True)
    assert (latent.variance, latent.loss, latent.latent_scale) == ("learned_range", "hybrid", 0.18215)
    assert (latent.licence, latent.source) == (None, None)
    pixels = run_recipe(config, meta_network(config), latents=False)
    assert pixels == replace(latent, latent_codec=None, latent_scale=1.0)
    plain = run_recipe(config, meta_network(config, {"learn_sigma": False}), latents=True)
    assert plain == replace(latent, variance="fixed_large", loss="mse")
    learned = run_recipe(make_config({"model": "dit_ti_2"}), meta_network(config, {"learn_sigma": True}), latents=True)
    assert (learned.variance, learned.loss) == ("learned_range", "hybrid")


def test_fine_tuned_weights_keep_their_licence() -> None:
    config = make_config({"from_weights": "dit_ti_2.digits", "num_classes": 37})
    model = ditzoo.create("dit_ti_2.digits", pretrained=True)
    assert run_recipe(config, model, latents=False).licence == "Apache-2.0"
    assert run_recipe(make_config(), model, latents=False).licence is None


def test_settings_change_the_recipe() -> None:
    config = make_config({"model": "mdtv2_ti_2", "recipe": ["mask_ratio=0.5", "schedule=cosine"]})
    recipe = run_recipe(config, meta_network(config), latents=False)
    assert (recipe.mask_ratio, recipe.mask_ratio_spread, recipe.schedule) == (0.5, 0.2, "cosine")
    flow = make_config({"model": "sit_ti_2", "recipe": ["schedule=linear", "prediction=epsilon", "sampler=ddim"]})
    with pytest.raises(ValueError, match="SiT embeds times from 0 to 1"):
        run_recipe(flow, meta_network(flow), latents=False)


def test_a_model_without_recipe_asks_for_one() -> None:
    config = make_config({"model": "dit_ti_2"})
    model = meta_network(config)
    model.details = replace(model.details, recipe=None)
    with pytest.raises(ValueError, match="dit_ti_2 has no recipe of its own; set prediction and schedule in recipe"):
        run_recipe(config, model, latents=False)
    told = make_config({"model": "dit_ti_2", "recipe": {"prediction": "sample", "schedule": "cosine"}})
    assert run_recipe(told, model, latents=False) == Recipe(prediction="sample", schedule="cosine")


def test_the_network_of_a_folder_is_known_without_its_weights(tmp_path: Path) -> None:
    ditzoo.create("dit_ti_2", depth=2).save_pretrained(tmp_path / "mine")
    config = make_config({"from_weights": str(tmp_path / "mine"), "model_options": {"num_classes": 3}})
    network = meta_network(config)
    assert (network.depth, network.num_classes, network.device.type) == (2, 3, "meta")
    assert network.details.name == "dit_ti_2"
    with pytest.raises(TypeError, match=r"has no option 'dept'\. Did you mean depth"):
        meta_network(config, {"dept": 3})
    for name, error, words in (
        (str(tmp_path / "mine/model.safetensors"), ValueError, "is a file of weights, which does not say of which"),
        ("https://example.org/a.pt", ValueError, "a.pt is a file of weights, which does not say of which network"),
        ("runs/none", FileNotFoundError, "there is no runs/none: give a registry name, the folder of a run"),
    ):
        with pytest.raises(error, match=words):
            meta_network(make_config({"from_weights": name}))


def test_of_a_model_of_the_hub_the_description_is_enough(
    tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ditzoo.create("dit_ti_2", depth=2).save_pretrained(tmp_path / "mine")
    described = {"config.json": (tmp_path / "mine/config.json").read_bytes()}
    hub_server.create("me/mine", described)
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    network = meta_network(make_config({"from_weights": "hf-hub:me/mine", "model_options": {"num_classes": 3}}))
    assert (network.depth, network.num_classes, network.device.type) == (2, 3, "meta")
