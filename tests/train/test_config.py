"""Settings of a run: how they are read, which are refused, and which let a run go on."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ditzoo.bench import QUICK
from ditzoo.models.digits import DIGITS_RECIPE
from ditzoo.train.config import RunConfig, make_config
from ditzoo.train.options import TrainOptions
from ditzoo.train.settings import field_docs

EVERYTHING = {
    "num_images": 2_000,
    "betas": (0.98, 0.92, 0.99),
    "optimizer": "adan",
    "max_grad_norm": math.inf,
    "ema_profiles": (0.05, 0.1),
    "model": "dit_s_2",
    "model_options": {"depth": 4, "mlp_ratio": 2.5},
    "freeze": ("blocks.0.*", "x_embedder.*"),
    "from_weights": "dit_ti_2.digits",
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "recipe": {"min_snr_gamma": 5.0, "guidance": {"scale": 2.0}},
    "data": None,
    "buckets": ("256x256", "192x320"),
    "trackers": ("tensorboard",),
    "flip": True,
}


def test_the_defaults_are_the_quick_benchmarks() -> None:
    config = RunConfig()
    quick = QUICK.train
    assert {f.name: getattr(config, f.name) for f in fields(TrainOptions)} == {
        f.name: getattr(quick, f.name) for f in fields(TrainOptions)
    }
    assert (config.model, config.data, config.folder) == ("dit_ti_2.digits", "digits", Path("runs/dit_ti_2.digits"))


def test_every_setting_is_explained() -> None:
    docs = field_docs(RunConfig)
    assert [name for name in docs if len(docs[name]) < 10] == []
    assert list(docs) == [f.name for f in fields(RunConfig)]
    assert docs["batch_size"] == "images of a step, over all processes and micro-batches"


@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_what_is_written_is_read_again(settings: dict, tmp_path: Path) -> None:
    config = RunConfig(**settings)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    assert make_config(file=file) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert f"# {field_docs(RunConfig)['flip']}\nflip: {str(config.flip).lower()}\n" in file.read_text()


def test_texts_stand_for_values() -> None:
    config = make_config(
        {
            "num_images": "1e6",
            "learning_rate": "1e-4",
            "betas": "0.9, 0.95",
            "max_grad_norm": "inf",
            "flip": "true",
            "size": "none",
            "freeze": "blocks.0.*,pos_embed",
            "model_options": ["depth=4", "conv=false"],
            "recipe": ["guidance.scale=2", "min_snr_gamma=5e-1"],
        }
    )
    assert (config.num_images, config.learning_rate, config.betas) == (1_000_000, 1e-4, (0.9, 0.95))
    assert (config.max_grad_norm, config.flip, config.size) == (math.inf, True, None)
    assert config.freeze == ("blocks.0.*", "pos_embed")
    assert config.model_options == {"depth": 4, "conv": False}
    assert config.recipe == {"guidance": {"scale": 2}, "min_snr_gamma": 0.5}


def test_numbers_that_yaml_takes_for_texts_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nnum_images: 2e3\nrecipe:\n  guidance: {scale: 2e0}\n")
    config = make_config(file=file)
    assert (config.learning_rate, config.num_images) == (1e-4, 2_000)
    assert config.recipe == {"guidance": {"scale": 2.0}}


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: dit_xl_2.in256\nseed: 3\nbatch_size: 64\nmodel_options: {depth: 2, num_heads: 8}\n")
    config = make_config({"seed": "5", "model_options": {"depth": 4}}, file=file)
    assert (config.seed, config.batch_size, config.learning_rate) == (5, 64, 1e-4)
    assert config.model_options == {"depth": 4, "num_heads": 8}
    assert (config.model, config.data, config.folder) == ("dit_xl_2", None, Path("runs/dit_xl_2.in256"))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"batchsize": 3}, ValueError, "unknown setting 'batchsize'. Did you mean batch_size"),
        ({"preset": "dit_xl_2.in265"}, ValueError, "unknown preset 'dit_xl_2.in265'. Did you mean dit_xl_2.in256"),
        ({"lr_schedule": "cosin"}, ValueError, "unknown lr_schedule 'cosin'. Did you mean cosine?"),
        ({"trackers": "tensorbord"}, ValueError, "unknown trackers 'tensorbord'. Did you mean tensorboard?"),
        ({"recipe": {"min_snr": 3}}, ValueError, "recipe has no entry 'min_snr'. Did you mean min_snr_gamma?"),
        ({"recipe": {"guidance": {"scal": 3}}}, ValueError, "recipe.guidance has no entry 'scal'. Did you mean scale"),
        ({"recipe": {"guidance": 3}}, TypeError, "recipe.guidance must be a mapping of entries to values, got 3"),
        ({"num_images": "many"}, ValueError, "num_images must be a whole number, got 'many'"),
        ({"num_images": 1.5}, ValueError, "num_images must be a whole number, got 1.5"),
        ({"num_images": True}, TypeError, "num_images must be a whole number, got True"),
        ({"num_images": 0}, ValueError, "num_images must be 1 or more, got 0"),
        ({"learning_rate": [1]}, TypeError, r"learning_rate must be a number, got \[1\]"),
        ({"flip": "perhaps"}, TypeError, "flip must be true or false, got 'perhaps'"),
        ({"model": 3}, TypeError, "model must be a text, got 3"),
        ({"model_options": ["depth"]}, ValueError, "model_options takes entries such as depth=4, got 'depth'"),
        ({"model_options": 4}, TypeError, "model_options must be a mapping of entries to values, got 4"),
        ({"buckets": "256"}, ValueError, "buckets must be sizes such as 256x256, height before width, got '256'"),
        (
            {"model_options": ["depth=3", "depth.x=3"]},
            ValueError,
            "model_options has 'depth' twice, with a value and with entries, in 'depth.x'",
        ),
        ({"seed": 2**63}, ValueError, r"seed must be below 2\*\*63, got 9223372036854775808"),
        ({"betas": ()}, ValueError, r"betas must be in \[0, 1\), got \(\)"),
        ({"device": "cuda:"}, ValueError, "device must be one of cpu, cuda, .* got 'cuda:'"),
        ({"lr": 1}, ValueError, "unknown setting 'lr'. Did you mean learning_rate?"),
        ({"from": "dit_xl_2"}, ValueError, "unknown setting 'from'. Did you mean from_weights?"),
        (
            {"preset": "dit_xl_2"},
            ValueError,
            "unknown preset 'dit_xl_2'. Did you mean dit_xl_2.in256 or dit_xl_2.in512?",
        ),
        ({"keep_last": 0}, ValueError, "keep_last must be 1 or more, got 0"),
        ({"spike_factor": 1}, ValueError, "spike_factor must be above 1, got 1"),
        ({"lora_alpha": 8}, ValueError, "lora_alpha is of low-rank updates, and lora_rank is 0: set lora_rank"),
        ({"lora_rank": 8}, ValueError, r"lora_rank is 8: .* and from_weights \(--from\) is not given"),
        ({"buckets": "8x16,16x8", "evaluate_every": 10}, ValueError, "evaluate_every compares images of one size"),
        ({"lora_rank": 8, "lora_alpha": 0}, ValueError, "lora_alpha must be above 0, got 0"),
        ({"size": 64, "buckets": "64x64"}, ValueError, r"size \(64\) and buckets both say how images are cropped"),
        ({"precision": "float16", "device": "cpu"}, ValueError, "precision 'float16' does not train on device 'cpu'"),
        (
            {"num_classes": 3, "model_options": {"num_classes": 4}},
            ValueError,
            "num_classes is 3 and model_options has 4; leave the latter out",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_config(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [", "is no YAML: .* line 1, column 8"),
        ("- seed", "must hold lines such as `batch_size: 256`, got"),
        ("sed: 3", "unknown setting 'sed'. Did you mean seed?"),
        ("seed: 1\nflip: true\nseed: 2", "'seed' is there twice.* line 3"),
        ("recipe:\n  guidance: {scale: 1, scale: 2}", "'scale' is there twice"),
        ("seed: 1:30", "seed must be a whole number, got '1:30'"),
        ("out: no", "out must be a text, got False; in YAML, put it between quotes"),
        ("data: 2024", "data must be a text, got 2024; in YAML, put it between quotes"),
        ("batch_size:", "batch_size must be a whole number, got None"),
        ("lr_schedule: no", "unknown lr_schedule False. Choose one of constant, cosine, linear"),
    ],
)
def test_a_file_that_is_wrong_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make_config(file=file)
    assert str(caught.value).startswith(str(file))


def test_yaml_stands_for_what_one_reads(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "seed: 010\nnum_images: 1_000\nout: 2024-01-02\nflip: yes\nmax_grad_norm: .inf\nlearning_rate: 1E-4\n"
        "model: '3'\nmodel_options: {depth: 2, conv: no, name: '4', empty: null, mlp_ratio: 2.5e0}\n"
    )
    config = make_config(file=file)
    assert (config.seed, config.num_images, config.out, config.flip) == (10, 1_000, "2024-01-02", True)
    assert (config.max_grad_norm, config.learning_rate, config.model) == (math.inf, 1e-4, "3")
    assert config.model_options == {"depth": 2, "conv": False, "name": "4", "empty": None, "mlp_ratio": 2.5}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# nothing\n")
    assert make_config(file=file) == RunConfig()


def test_a_recipe_is_changed_entry_by_entry() -> None:
    config = make_config({"recipe": ["guidance.scale=3", "num_inference_steps=10"]})
    changed = config.apply_recipe(DIGITS_RECIPE)
    guidance = replace(DIGITS_RECIPE.guidance, scale=3)
    assert changed == replace(DIGITS_RECIPE, guidance=guidance, num_inference_steps=10)
    with pytest.raises(ValueError, match="recipe: unknown schedule 'cosin'"):
        make_config({"recipe": ["schedule=cosin"]}).apply_recipe(DIGITS_RECIPE)


def test_a_run_goes_on_with_settings_that_change_nothing_of_what_it_learns() -> None:
    saved = RunConfig()
    free = {"num_workers": 3, "log_every": 5, "out": "elsewhere", "device": "cpu", "accumulation": 4, "compile": True}
    assert replace(saved, **free).differences(saved) == {}
    assert replace(saved, seed=1, learning_rate=1e-3).differences(saved) == {
        "seed": (1, 0),
        "learning_rate": (1e-3, 4e-3),
    }
    moved = replace(saved, data="digits:test")
    assert moved.differences(saved) == {"data": ("digits:test", "digits")}
    assert moved.differences(saved, same_data=True) == {}


def test_a_run_may_grow_where_its_learning_rate_does_not_depend_on_its_length() -> None:
    saved = RunConfig(lr_schedule="constant")
    longer = replace(saved, num_images=96_000)
    assert longer.differences(saved) == {}
    assert saved.differences(longer) == {"num_images": (48_000, 96_000)}
    cosine = replace(longer, lr_schedule="cosine")
    assert set(cosine.differences(replace(saved, lr_schedule="cosine"))) == {"num_images"}


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({"model": "dit_b_2"}, "runs/dit_b_2"),
        ({"preset": "dit_b_2.in256", "model": "dit_s_2"}, "runs/dit_b_2.in256"),
        ({"from_weights": "hf-hub:user/my model"}, "runs/user-my-model"),
        ({"from_weights": "../"}, "runs/run"),
        ({"out": "here"}, "here"),
    ],
)
def test_a_run_has_a_folder(settings: dict, folder: str) -> None:
    assert RunConfig(**settings).folder == Path(folder)
