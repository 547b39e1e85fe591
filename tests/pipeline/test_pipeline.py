"""Labels in, pictures out."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import ditzoo
from ditzoo.diffusion import NonFiniteSampleError, count_evaluations
from ditzoo.media import LatentCodec, to_uint8
from ditzoo.metrics.digits import load_digits_classifier
from ditzoo.pipeline import Pipeline, Samples
from ditzoo.pipeline.denoising import NonFiniteImageError
from ditzoo.recipe import Guidance, Recipe
from tests.pipeline.pipes import PACKAGED, QUICK, QUICK_FLOW, by_hand, tiny
from tests.zoo import lively


@torch.no_grad()
def test_samples_are_what_the_sampler_gives():
    samples = tiny()([3, 1, 4], seed=7)
    expected = by_hand(tiny(), torch.tensor([3, 1, 4]), QUICK, 7, range(3))
    torch.testing.assert_close(samples.latents, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(samples.pixels, to_uint8(samples.latents).permute(0, 2, 3, 1).numpy())
    assert samples.labels.tolist() == [3, 1, 4]
    assert (samples.seed, samples.indices, samples.recipe) == (7, [0, 1, 2], QUICK)
    assert (samples.evaluations, samples.forward_passes) == (4, 8)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        *[(name, "ddim") for name in ("dit_ti_2", "sit_ti_2", "uvit_ti_2", "mdtv2_ti_2", "diffit_ti_2")],
        *[(name, "ddpm") for name in ("dit_ti_2", "uvit_ti_2", "mdtv2_ti_2", "diffit_ti_2")],
        ("sit_ti_2", "euler_maruyama"),
        ("diffit_unet_ti", "edm_heun"),
    ],
)
def test_a_sample_does_not_depend_on_its_batch(name, sampler):
    pipeline = tiny(name)
    whole = pipeline(range(8), sampler=sampler, seed=3, batch_size=8)
    for size in (1, 3):
        parts = pipeline(range(8), sampler=sampler, seed=3, batch_size=size)
        torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-4, atol=2e-5)
        assert np.abs(parts.pixels.astype(int) - whole.pixels).max() <= 1
    alone = pipeline([5], sampler=sampler, seed=3, first_index=5)
    torch.testing.assert_close(alone.latents[0], whole.latents[5], rtol=1e-4, atol=2e-5)
    other = pipeline([5], sampler=sampler, seed=4, first_index=5)
    assert (other.latents - alone.latents).abs().max() > 0.01


#: calls of the network in 5 steps, where they do not depend on the network
EVALUATIONS = {"edm_heun": 9, "heun": 10, "heun_maruyama": 9, "dopri5": None}


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        (name, sampler)
        for name, recipe in [("dit_ti_2", QUICK), ("sit_ti_2", QUICK_FLOW)]
        for sampler in recipe.samplers
    ],
)
def test_every_sampler_of_the_recipe_gives_pictures(name, sampler):
    samples = tiny(name)([1, 2], sampler=sampler, num_inference_steps=5)
    assert torch.isfinite(samples.latents).all()
    assert samples.recipe.sampler == sampler
    assert count_evaluations(samples.recipe) == EVALUATIONS.get(sampler, 5)
    if sampler == "dopri5":
        assert samples.evaluations >= 7  # one step has seven stages
    else:
        assert samples.evaluations == EVALUATIONS.get(sampler, 5)


def test_labels_in_every_form():
    pipeline = tiny()
    assert pipeline.labels(3, None)[0].tolist() == [3]
    assert pipeline.labels(np.int64(3), None)[0].tolist() == [3]
    assert pipeline.labels("three", None)[0].tolist() == [3]
    assert pipeline.labels(["three", 1, "9"], 5)[0].tolist() == [3, 1, 9, 3, 1]
    assert pipeline.labels(np.array([2, 9]), None)[0].tolist() == [2, 9]
    assert pipeline.labels(torch.tensor([2, 10]), None)[0].tolist() == [2, 10]  # 10 is the null label
    assert pipeline.labels([4, 5], 3, first_index=1)[0].tolist() == [5, 4, 5]
    assert pipeline.get_label_ids(["seven", "0"]) == [7, 0]
    drawn, _ = pipeline.labels(None, 400, seed=1)
    assert pipeline.labels(None, 10, seed=1, first_index=20)[0].tolist() == drawn[20:30].tolist()
    assert min(torch.bincount(drawn, minlength=10).tolist()) > 15


def test_imagenets_names_come_with_models_of_a_thousand_classes():
    with torch.device("meta"):
        model = ditzoo.create("dit_s_2", input_size=8, depth=1)
    recipe = dataclasses.replace(ditzoo.model_info("dit_xl_2").recipe, latent_codec=None, latent_scale=1.0)
    pipeline = Pipeline(model, recipe)
    assert pipeline.get_label_ids("golden retriever") == [207]
    with pytest.raises(ValueError, match=r"no class is named 'strawbery'.*strawberry"):
        pipeline.get_label_ids(["strawbery"])


def test_an_unconditional_model_takes_no_labels_and_no_guidance():
    pipeline = tiny(num_classes=0)
    samples = pipeline(num_images=2)
    assert samples.labels is None
    assert samples.forward_passes == 4  # one pass a step
    with pytest.raises(ValueError, match=r"unconditional and takes no class_labels"):
        pipeline([1])
    with pytest.raises(ValueError, match=r"needs a null label, and this model has none"):
        pipeline(num_images=1, guidance_scale=2.0)


def test_a_model_without_null_label_is_sampled_unguided():
    pipeline = tiny(class_dropout_prob=0.0)
    assert pipeline([1]).recipe.guidance.is_off
    with pytest.raises(
        ValueError, match=r"there is no class 10: dit_ti_2 takes labels from 0 to 9; it has no null label"
    ):
        pipeline([10])


def test_guidance_is_that_of_the_call():
    plain = tiny()([3], guidance_scale=1.0)
    assert plain.forward_passes == 4
    strong = tiny()([3], guidance_scale=6.0)
    assert (strong.latents - plain.latents).abs().max() > 0.01
    same = tiny()([3], guidance=Guidance(scale=5.0, convention="uvit"))
    torch.testing.assert_close(same.latents, strong.latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"give guidance_scale or guidance, not both"):
        tiny()([3], guidance_scale=2.0, guidance=Guidance(scale=2.0))


@pytest.mark.parametrize(
    ("convention", "scale", "advice"),
    [
        ("dit", 0.4, "If you mean 0.4 as U-ViT counts it, .* give 1.4"),
        ("uvit", 1.5, "If you mean DiT's 1.5, .* give 0.5"),
    ],
)
def test_a_scale_of_the_other_convention_is_warned_of(convention, scale, advice):
    guidance = Guidance(scale=1.5, convention=convention)
    pipeline = Pipeline(tiny().model, dataclasses.replace(QUICK, guidance=guidance))
    with pytest.warns(UserWarning, match=advice) as warned:
        pipeline([1], guidance_scale=scale)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline([1], guidance_scale={"dit": 4.0, "uvit": 0.4}[convention])


def test_autoguidance_uses_the_weaker_model():
    strong, weak = tiny().model, lively("dit_ti_2", depth=1)
    pipeline = Pipeline(strong, QUICK, weak_model=weak)
    guided = pipeline([3], guidance=Guidance(scale=2.0, kind="autoguidance"))
    plain = pipeline([3], guidance_scale=1.0)
    assert guided.forward_passes == 2 * plain.forward_passes  # the weaker model's count too
    assert guided.evaluations == plain.evaluations
    assert (guided.latents - plain.latents).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"autoguidance needs weak_model="):
        tiny()([3], guidance=Guidance(scale=2.0, kind="autoguidance"))
    with pytest.raises(ValueError, match=r"weak_model has num_classes=3 and the model num_classes=10; .* same data"):
        Pipeline(strong, QUICK, weak_model=lively("dit_ti_2", num_classes=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "epsilon"}, "has prediction='epsilon' and the model prediction='v_prediction'"),
        ({"schedule": "linear"}, "has schedule='linear' and the model schedule='cosine'"),
        ({"time_offset": 1.0}, "has time_offset=1.0 and the model time_offset=0.0"),
        ({"latent_scale": 0.5}, "has latent_scale=0.5 and the model latent_scale=1.0"),
    ],
)
def test_a_weaker_model_of_another_recipe_is_refused(change, message):
    strong, weak = Pipeline(tiny().model, QUICK), Pipeline(lively("dit_ti_2", depth=1), QUICK, name="weak")
    strong.weak_model = weak
    assert strong.weak_model is weak.model
    weak.recipe = dataclasses.replace(QUICK, **change)
    with pytest.raises(ValueError, match=f"the weak model weak {message}; .* same thing at the same times"):
        strong.weak_model = weak
    with pytest.raises(ValueError, match=message):
        Pipeline(strong.model, QUICK, weak_model=weak)


def test_frames_show_the_way():
    samples = tiny()([3, 5], frames="sample")
    assert len(samples.frames) == 4
    assert np.array_equal(samples.frames[-1], samples.pixels)
    estimates = tiny()([3, 5], frames="x0", batch_size=1)
    assert [frame.shape for frame in estimates.frames] == [(2, 8, 8, 1)] * 4
    assert not np.array_equal(estimates.frames[0], samples.frames[0])
    changes = [(a != b).mean() for a, b in itertools.pairwise(estimates.frames)]
    assert all(change > 0.1 for change in changes)


def test_latents_and_callback():
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    told = []
    samples = tiny()([3, 5], latents=noise, callback=lambda step, indices: told.append((step.number, list(indices))))
    again = tiny()([3, 5], latents=noise.clone(), seed=99)
    assert torch.equal(samples.latents, again.latents)
    assert told == [(n, [0, 1]) for n in (1, 2, 3, 4)]
    assert tiny()(latents=noise).labels.shape == (2,)
    only = tiny()([3], output="latents")
    assert only.pixels is None
    with pytest.raises(ValueError, match=r"these samples are latents only"):
        only.images  # noqa: B018 - the property raises


def test_other_sizes():
    samples = tiny()([3], size=(12, 8))
    assert samples.pixels.shape == (1, 12, 8, 1)
    with pytest.raises(ValueError, match=r"9x8 is not divisible by patch_size 2"):
        tiny()([3], size=(9, 8))


def test_pictures_of_samples(tmp_path):
    samples = tiny()(range(10), frames="x0")
    assert [image.size for image in samples.images] == [(8, 8)] * 10
    tensor = samples.tensor()
    assert np.array_equal(to_uint8(tensor).permute(0, 2, 3, 1).numpy(), samples.pixels)
    samples.save(tmp_path / "grid.png", columns=5)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (5 * 64 + 4 * 2, 2 * 64 + 2)
    samples.save(tmp_path / "steps.gif")
    with Image.open(tmp_path / "steps.gif") as steps:
        assert steps.n_frames == 4
    samples.save(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as file:
        assert np.array_equal(file["arr_0"], samples.pixels)
        assert file["arr_1"].tolist() == list(range(10))
    samples.save(tmp_path / "folder")
    rows = (tmp_path / "folder" / "labels.csv").read_text().splitlines()
    assert rows[4].split(",") == ["3", "3", "3", "0"]
    with Image.open(tmp_path / "folder" / "000003.png") as image:
        assert np.array_equal(np.asarray(image), samples.pixels[3, :, :, 0])
    with pytest.raises(ValueError, match=r"all.jpg has none of the suffixes .png, .gif, .webp and .npz"):
        samples.save(tmp_path / "all.jpg")
    with pytest.raises(ValueError, match=r"which were not kept: ask the pipeline for frames"):
        tiny()([1]).save(tmp_path / "steps.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "folder", "grid.png", "steps.gif"]


def test_values_that_are_no_numbers_stop_the_run_and_keep_what_is_finished():
    model = lively("dit_ti_2")
    pipeline = Pipeline(model, QUICK)
    whole = pipeline([1, 2, 3, 4])

    def spoil(module, arguments, output):
        if arguments[0].shape[0] == 4 and int(arguments[2][1]) == 4:  # two samples, guided; labels 3 and 4
            output[1] = torch.nan
        return output

    handle = model.register_forward_hook(spoil)
    try:
        with pytest.raises(NonFiniteSampleError, match=r"at step 1 of 4, in samples 3\.") as caught:
            pipeline([1, 2, 3, 4], batch_size=2)
    finally:
        handle.remove()
    finished = caught.value.finished
    assert isinstance(finished, Samples)
    torch.testing.assert_close(finished.latents, whole.latents[:2], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": [11]}, r"there is no class 11: dit_ti_2 takes labels from 0 to 10 \(10 is the null label\)"),
        ({"class_labels": [-1]}, "there is no class -1"),
        ({"class_labels": ["eleven"]}, "no class is named 'eleven'"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"num_images": 0}, "num_images must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"first_index": -1}, "first_index must be 0 or more, got -1"),
        ({"size": (8, 8), "latents": torch.zeros(1, 1, 8, 8)}, "give latents or size, not both"),
        (
            {"guidance": Guidance(scale=2.0, channels=3)},
            "3 guided channels are more than the model's 1; give that many",
        ),
        ({"size": (0, 8)}, "image sides must be 1 or more, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 or more, got 0"),
        ({"num_inference_steps": 1001}, r"from 1 to num_train_timesteps \(1000\).*got 1001"),
        ({"output": "latent"}, "unknown output 'latent'; choose one of images, latents"),
        ({"frames": "all"}, "unknown frames 'all'; choose one of None, x0, sample"),
        ({"sampler": "plms"}, "unknown sampler 'plms'; choose one of ddpm, ddim"),
        ({"sampler": "euler"}, "sampler 'euler' does not go with schedule 'cosine'; choose one of ddpm, ddim"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents have shape \(1, 3, 8, 8\); give .* \(1, 1, H, W\)"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**{"class_labels": [1], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 2.0}, "num_images must be a whole number, got 2.0"),
        ({"batch_size": "8"}, "batch_size must be a whole number, got '8'"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"latents": np.zeros((1, 1, 8, 8))}, "latents must be a tensor, got ndarray"),
        ({"num_inference_steps": 2.0}, "num_inference_steps must be a whole number, got 2.0"),
        ({"size": 16}, r"size must be the height and width .* such as \(256, 256\), got 16"),
        ({"size": (8.0, 8)}, r"image sides must be a whole number, got 8.0"),
    ],
)
def test_numbers_that_are_none_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        tiny()(**{"class_labels": [1], **options})


def test_a_misspelt_sampler_option_is_named():
    with pytest.raises(TypeError, match=r"sampler 'ddim' has no option 'eat'. Did you mean eta?"):
        tiny()([1], sampler_options={"eat": 1.0})
    with pytest.raises(TypeError, match=r"a class label is a number or a name, got 1.5"):
        tiny()([1.5])


def test_recipe_and_model_must_agree():
    learned = dataclasses.replace(QUICK, variance="learned_range", loss="hybrid")
    with pytest.raises(ValueError, match=r"samples with a learned variance, and dit predicts none"):
        Pipeline(lively("dit_ti_2"), learned, name="dit")
    doubled = Pipeline(lively("dit_ti_2", learn_sigma=True), learned)
    samples = doubled([1], sampler="ddpm")
    fixed = Pipeline(doubled.model, QUICK)([1], sampler="ddpm")
    assert (samples.latents - fixed.latents).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"SiT embeds times from 0 to 1, .* tells it times up to 999"):
        Pipeline(lively("sit_ti_2"), QUICK)
    with pytest.raises(ValueError, match=r"there are names of 3 classes, but the model has 10"):
        Pipeline(lively("dit_ti_2"), QUICK, label_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"give numbers from 0 on, or label_names="):
        Pipeline(lively("dit_ti_2"), QUICK)(["one"])


def test_a_recipes_autoencoder_is_loaded_only_to_decode(monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options["scale"], options["shift"]))
        raise OSError("offline")

    monkeypatch.setattr("ditzoo.pipeline.pipeline.load_codec", load)
    recipe = dataclasses.replace(QUICK, latent_codec="a/b", latent_scale=0.5, latent_shift=0.25)
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4), recipe)
    assert pipeline([1], output="latents").latents.shape == (1, 4, 8, 8)
    assert asked == []
    told = []
    with pytest.raises(OSError, match=r"offline"):
        pipeline([1], callback=lambda step, indices: told.append(step))
    assert asked == [("a/b", 0.5, 0.25)]
    assert told == []  # and before anything is sampled in vain


class Doubling:
    """A codec that shows what it is given."""

    downsampling, latent_channels = 2, 4

    def check_fits(self, in_channels):
        LatentCodec.check_fits(self, in_channels)

    name = "doubling"

    def decode(self, latents):
        return latents.mean(dim=1, keepdim=True).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_decoded_values_that_are_no_numbers_are_noticed():
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4), QUICK, Doubling())
    with pytest.raises(FloatingPointError, match=r"doubling decoded values that are not finite; load the autoencoder"):
        pipeline.decode(torch.full((1, 4, 8, 8), torch.nan))
    whole = pipeline([1, 2, 3])
    decoded = []
    decode = pipeline.codec.decode

    def overflow(latents):
        decoded.append(len(latents))
        return decode(latents) * (torch.inf if len(decoded) == 2 else 1)

    pipeline.codec.decode = overflow
    with pytest.raises(NonFiniteImageError) as caught:
        pipeline([1, 2, 3], batch_size=2)
    assert decoded == [2, 1]
    torch.testing.assert_close(caught.value.finished.latents, whole.latents[:2], rtol=1e-4, atol=2e-5)


def test_a_codec_decodes_and_must_fit():
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4), QUICK, Doubling())
    samples = pipeline([1], size=(16, 16))
    assert samples.pixels.shape == (1, 16, 16, 1)
    assert np.array_equal(samples.pixels, pipeline.decode(samples.latents))
    with pytest.raises(ValueError, match=r"4 latent channels"):
        Pipeline(lively("dit_ti_2"), QUICK, Doubling())
    with pytest.raises(ValueError, match=r"multiples of 2 pixels, got 15x16"):
        pipeline([1], size=(15, 16))


def test_the_authors_file_makes_a_pipeline(tmp_path):
    model = lively("dit_ti_2")
    torch.save({"ema": model.state_dict()}, tmp_path / "weights.pt")
    pipeline = Pipeline.from_pretrained("dit_ti_2.digits", checkpoint=tmp_path / "weights.pt")
    expected = Pipeline(model, pipeline.recipe)([3], num_inference_steps=4)
    assert torch.equal(pipeline([3], num_inference_steps=4).latents, expected.latents)
    torch.save(lively("dit_ti_2", num_classes=3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: the weights do not fit this DiT: .* They are for num_classes=3"):
        Pipeline.from_pretrained("dit_ti_2.digits", checkpoint=tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"device 'gpu' cannot be used here .* cpu always can"):
        Pipeline.from_pretrained("dit_ti_2.digits", device="gpu")
    with pytest.raises(ValueError, match=r"cannot be downloaded by program.*checkpoint="):
        Pipeline.from_pretrained("uvit_h_2.in256")
    assert Pipeline.from_pretrained("dit_ti_2").name == "dit_ti_2.digits"


def test_every_family_of_the_quick_benchmark_has_packaged_weights():
    assert {ditzoo.model_info(name).family for name in PACKAGED} == set(ditzoo.list_families())


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_draw_the_digits_asked_for(name):
    samples = ditzoo.sample(name, range(10), num_images=60)
    classifier = load_digits_classifier()
    right = (classifier(samples.tensor()).argmax(1) == samples.labels).float().mean()
    assert right >= 0.9
    state = ditzoo.create(name, pretrained=True).state_dict()
    assert all(torch.equal(value, value.half().float()) for value in state.values())


def test_packaged_weights_refuse_another_network():
    with pytest.raises(ValueError, match=r"dit_ti_2\.safetensors: .* They are for depth=4, the model has depth=3"):
        ditzoo.create("dit_ti_2.digits", pretrained=True, depth=3)


def test_sample_takes_a_pipeline_too():
    assert torch.equal(ditzoo.sample(tiny(), [3], seed=1).latents, tiny()([3], seed=1).latents)
    assert isinstance(QUICK_FLOW, Recipe)
