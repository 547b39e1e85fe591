"""Runs that start from weights, and what runs draw and measure."""

import logging

import pytest
import torch
from PIL import Image

import ditzoo
from ditzoo.data import TensorSource, encode
from ditzoo.media import load_codec, load_codec_for_recipe
from ditzoo.models import DiT
from ditzoo.train import run
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.monitor import Evaluator, MetricsFile
from ditzoo.weights.files import load_state_dict
from tests.media.test_codec import needs_diffusers, small_kl, small_tiny
from tests.train.test_monitor import FakeInception, fake_torch_fidelity
from tests.train.test_runs import assert_same, settings

CODEC = "toys/toy"
#: Of the latents below.
LATENT = {
    "model": "dit_s_2",
    "model_options": {"depth": 1, "hidden_size": 16, "num_heads": 2, "learn_sigma": False},
    "recipe": {"num_inference_steps": 2, "latent_codec": CODEC, "latent_scale": 0.2},
    "num_images": 16,
    "grid_rows": 1,
    "grid_columns": 3,
}


def tuned(out, **given):
    """Settings of a run from the packaged weights."""
    more = {"from_weights": "dit_ti_2.digits", "model_options": {}, "num_images": 32, "learning_rate": 1e-2, **given}
    return settings(out, None, **more)


def events(folder):
    return [(row["seen"], row["event"]) for row in MetricsFile(folder / "metrics.jsonl").rows("event")]


# Other weights, other classes.


@pytest.mark.parametrize(
    ("num_classes", "told"),
    [(37, "The names of the 10 classes of the data are left out: the network has 37."), (0, "")],
)
def test_names_of_other_numbers_of_classes_than_the_networks_are_left_out(tmp_path, caplog, num_classes, told):
    caplog.set_level(logging.WARNING, "ditzoo")
    config = tuned(tmp_path / "run", num_classes=num_classes, num_images=8, sample_every=8, grid_rows=1)
    run(config)
    model = DiT.from_pretrained(tmp_path / "run")
    assert (model.num_classes, model.details.label_names) == (num_classes, None)
    assert [message for message in caplog.messages if "names" in message] == ([told] if told else [])
    assert (tmp_path / "run/samples/000000008.png").exists()


def test_a_class_without_a_name_is_told_before_training(tmp_path, monkeypatch):
    named = ("one", "two", *"345678", "nine,", "ten")
    source = TensorSource(torch.zeros(4, 1, 8, 8), torch.arange(4), num_classes=10, label_names=named)
    monkeypatch.setattr("ditzoo.train.runs.open_data", lambda config, network: source)
    with pytest.raises(ValueError, match="class 8 lacks a name: 'nine,'"):
        run(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_of_adapters_in_parts_is_the_run_in_one(tmp_path):
    more = {"num_classes": 12, "lora_rank": 2, "freeze": "blocks.0.*", "weight_decay": 0.1}
    whole = run(tuned(tmp_path / "whole", **more))
    assert not run(tuned(tmp_path / "parts", **more), stop_at=16).finished
    rest = run(tuned(tmp_path / "parts", **more))
    assert_same(whole, rest)

    # The model of a checkpoint is the averaged adapters in the weights; the frozen weights stand once besides.
    state = load_state(Checkpoints(tmp_path / "parts/checkpoints").newest())
    average = state.average()
    model = load_state_dict(rest.checkpoint / "model.safetensors")
    layer = "blocks.1.attn.qkv"
    base = state.tensors[f"weights/{layer}.base_layer.weight"]
    low, high = (average[f"{layer}.lora_{matrix}.default.weight"] for matrix in "AB")
    assert high.abs().max() > 0
    assert torch.equal(model[f"{layer}.weight"], base + high @ low)
    started = ditzoo.create("dit_ti_2.digits", pretrained=True).state_dict()
    assert torch.equal(base, started[f"{layer}.weight"])
    assert torch.equal(model["blocks.0.attn.qkv.weight"], started["blocks.0.attn.qkv.weight"])
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(model[table], average[table])
    assert not torch.equal(model[table][:10], started[table][:10])
    assert sum(name.endswith("base_layer.weight") for name in state.tensors) == 20  # none among the averages
    details = DiT.from_pretrained(tmp_path / "parts").details
    assert (details.licence, details.source) == ("Apache-2.0", details.recipe.source)
    assert "packaged with ditzoo" in details.source


# Samples that cannot be drawn.


def test_samples_that_are_not_finite_leave_the_run_alone(tmp_path, monkeypatch):
    def blow_up(self, model, indices):
        raise FloatingPointError("sample 3 is not finite")

    monkeypatch.setattr(Evaluator, "features", blow_up)
    monkeypatch.setattr("ditzoo.train.runs.draw_grid", lambda *args, **options: blow_up(None, None, None))
    config = settings(tmp_path / "run", num_images=16, sample_every=8, evaluate_every=8, evaluation_samples=4)
    result = run(config)
    assert (result.finished, result.distance) == (True, None)
    assert events(tmp_path / "run") == [(8, "no samples"), (8, "no distance"), (16, "no samples"), (16, "no distance")]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"codec": "my/vae"}, ValueError, "codec 'my/vae' decodes latents, and the data holds pixels; leave it out"),
        ({"trackers": "wandb"}, ImportError, "wandb is not installed: pip install wandb"),
    ],
)
def test_what_is_missing_is_told_before_an_old_run_is_deleted(tmp_path, monkeypatch, given, error, words):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    old = run(settings(tmp_path / "run"), stop_at=8)
    with pytest.raises(error, match=words):
        run(settings(tmp_path / "run", overwrite=True, **given))
    assert old.checkpoint.exists()


# Latents.


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A folder with latents of eight coloured squares, and the autoencoders `kl`, `other` and `tiny`."""
    needs_diffusers()
    folder = tmp_path_factory.mktemp("latents")
    for seed, name in enumerate(("kl", "other")):
        torch.manual_seed(seed)
        small_kl(scaling_factor=0.2).save_pretrained(folder / name)
    small_tiny(2).save_pretrained(folder / "tiny")
    codec = load_codec(folder / "kl", scale=0.2)
    codec.name = CODEC
    images = torch.linspace(-1, 1, 8).reshape(8, 1, 1, 1).expand(8, 3, 16, 16)
    encode(TensorSource(images, torch.arange(8) % 3, name="squares", fingerprint="ab"), codec, folder / "cache")
    return folder


def test_an_autoencoder_that_cannot_be_had_is_told_before_training(tmp_path, latents, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = (
        r"samples of latents need an autoencoder: autoencoder toys/toy is not on this machine\. HF_HUB_OFFLINE is set"
        r".* Set codec to the folder, or sample_every and evaluate_every to 0"
    )
    for given in ({"sample_every": 8}, {"evaluate_every": 8}):
        with pytest.raises(OSError, match=words):
            run(settings(tmp_path / "run", **LATENT, data=str(latents / "cache"), **given))
    assert not (tmp_path / "run").exists()
    assert run(settings(tmp_path / "run", **LATENT, data=str(latents / "cache"))).finished


def test_another_autoencoder_than_that_of_the_latents_is_refused(tmp_path, latents):
    config = settings(tmp_path / "run", **LATENT, data=str(latents / "cache"), codec=str(latents / "other"))
    with pytest.raises(ValueError, match=r"they are of encoder toys/toy .*, the recipe's is .*other"):
        run(config)


@pytest.mark.parametrize("codec", ["kl", "tiny"])
def test_samples_of_latents_are_decoded_and_compared_with_decoded_ones(tmp_path, latents, monkeypatch, codec):
    fake_torch_fidelity(monkeypatch, FakeInception)
    loads = []
    load = "ditzoo.train.runs.load_codec_for_recipe"
    monkeypatch.setattr(load, lambda *args, **options: loads.append(args) or load_codec_for_recipe(*args, **options))
    more = {"codec": str(latents / codec), "sample_every": 8, "evaluate_every": 8, "evaluation_samples": 6}
    result = run(settings(tmp_path / "run", **LATENT, data=str(latents / "cache"), **more))
    assert len(loads) == 1
    assert (result.distance.reference, result.distance.reference_samples) == ("decoded training latents", 6)
    assert len(MetricsFile(tmp_path / "run/metrics.jsonl").rows("evaluation")) == 2
    assert Image.open(tmp_path / "run/samples/000000016.png").mode == "RGB"
