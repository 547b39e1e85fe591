"""Settings of the papers, each with where it was read, and those of the tiny models.

What no source says is ours, and says so. Loads no torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ditzoo.train.settings import did_you_mean

Confidence = Literal["stated", "recalled", "ours"]


@dataclass(frozen=True)
class Setting:
    """A value and where it is from.

    Attributes:
        value: of a field of `RunConfig`.
        source: paper, table or code that says so; what is missing, where the value is ours.
        confidence: `"stated"` by the source; `"recalled"` from it, and to be compared with it before one relies on it;
            `"ours"` where no source is known, or the authors have no such setting.
    """

    value: Any
    source: str
    confidence: Confidence

    def __str__(self) -> str:
        return {"stated": "", "recalled": "recalled, check it: ", "ours": "ours: "}[self.confidence] + self.source


@dataclass(frozen=True)
class Preset:
    """Settings of `ditzoo train --preset NAME`.

    Attributes:
        name: the model, a dot, and what it is trained on.
        title: what the settings reproduce.
        data: what the authors trained on.
        num_samples: images in it.
        values: field of `RunConfig` -> value with its source.
        notes: what else differs from the authors' training, one sentence each.
    """

    name: str
    title: str
    data: str
    num_samples: int
    values: Mapping[str, Setting] = field(hash=False)
    notes: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The values alone, and the preset's name."""
        return {"preset": self.name, **{name: setting.value for name, setting in self.values.items()}}


def list_presets(pattern: str | None = None) -> list[str]:
    """Names of presets, those that the pattern (shell wildcards) matches."""
    return [name for name in _PRESETS if pattern is None or fnmatch.fnmatch(name, pattern)]


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: for an unknown one; the nearest are named.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r:.60}.{did_you_mean(str(name), _PRESETS)} All: {', '.join(_PRESETS)}.")
    return _PRESETS[name]


def _stated(source: str, **values: Any) -> dict[str, Setting]:
    return {name: Setting(value, source, "stated") for name, value in values.items()}


def _recalled(source: str, **values: Any) -> dict[str, Setting]:
    return {name: Setting(value, source, "recalled") for name, value in values.items()}


def _ours(reason: str, **values: Any) -> dict[str, Setting]:
    return {name: Setting(value, reason, "ours") for name, value in values.items()}


_IMAGENET = ("ImageNet-1k", 1_281_167)
_DIT = "arXiv:2212.09748, section 4, and the authors' code"
_SIT = "arXiv:2401.08740"
_UVIT = "arXiv:2209.12152, experimental settings, and the authors' configurations"
_UVIT_LENGTH = "the authors' configurations (github.com/baofff/U-ViT, ce55170)"
_MDT = "arXiv:2303.14389 and the authors' code (github.com/sail-sg/MDT, branch mdtv1)"
_MDTV2 = "the authors' code and run script (github.com/sail-sg/MDT, 7d26c21)"
_DIFFIT = "arXiv:2312.02139v3, appendix I.1"
_DIFFIT_LATENT = "arXiv:2312.02139v3, appendix I.2"
_EDM = "arXiv:2206.00364, which DiffiT's image-space training follows"

#: Of runs on large data sets: what papers do not have, or do not say.
_LARGE = {
    **_ours("the data lies where you put it", data=None),
    **_ours("100 steps of 256, and 25,000", log_every=25_600, sample_every=6_400_000),
    **_ours("25,000 steps of 256, and for good 100,000", checkpoint_every=6_400_000, keep_every=25_600_000),
    **_ours("depends on the machine", num_workers=4),
}
_UNCLIPPED = _ours("no source mentions clipping", max_grad_norm="inf")
_TORCH_BETAS = _ours("no source gives them; PyTorch's own", betas=(0.9, 0.999))
_BFLOAT16 = _ours("no source gives it; bfloat16 keeps float32 weights, norms and losses", precision="bfloat16")


def _steps(source: str, steps: int, batch_size: int, confidence: Confidence = "stated") -> dict[str, Setting]:
    text = f"{steps:,} steps of {batch_size:,}: {source}"
    values = {"num_images": steps * batch_size, "batch_size": batch_size}
    return {name: Setting(value, text, confidence) for name, value in values.items()}


def _model(name: str, **options: Any) -> dict[str, Setting]:
    return _stated("the preset's name", model=name, **({"model_options": options} if options else {}))


_DIT_COMMON = {
    **_LARGE,
    **_stated(
        _DIT,
        optimizer="adamw",
        learning_rate=1e-4,
        lr_schedule="constant",
        warmup_images=0,
        weight_decay=0.0,
        ema_decay=0.9999,
        flip=True,
    ),
    **_TORCH_BETAS,
    **_UNCLIPPED,
    **_BFLOAT16,
}
_SIT_COMMON = {
    **_LARGE,
    **_recalled(
        f"{_SIT} keeps DiT's: arXiv:2212.09748, section 4",
        optimizer="adamw",
        learning_rate=1e-4,
        lr_schedule="constant",
        warmup_images=0,
        weight_decay=0.0,
        ema_decay=0.9999,
        flip=True,
    ),
    **_TORCH_BETAS,
    **_UNCLIPPED,
    **_BFLOAT16,
}
_MDT_COMMON = {
    **_LARGE,
    **_stated(_MDT, optimizer="adamw", learning_rate=3e-4, ema_decay=0.9999),
    **_recalled(_MDT, lr_schedule="constant", warmup_images=0, weight_decay=0.0),
    **_ours("no source was read on it; DiT's", flip=True),
    **_TORCH_BETAS,
    **_UNCLIPPED,
    **_BFLOAT16,
}
_MDTV2_COMMON = {
    **_LARGE,
    **_stated(_MDTV2, optimizer="adan", learning_rate=5e-4, max_grad_norm=1.0, ema_decay=0.9999),
    **_recalled(_MDTV2, lr_schedule="constant", warmup_images=0),
    **_ours("no source was read on it; Adan's own (arXiv:2208.06677)", betas=(0.98, 0.92, 0.99)),
    **_ours("no source was read on it", weight_decay=0.0),
    **_ours("no source was read on it; DiT's", flip=True),
    **_BFLOAT16,
}
_DIFFIT_COMMON = {
    **_LARGE,
    **_recalled(_DIFFIT_LATENT, ema_decay=0.9999),
    **_ours(
        "not known here; DiT's: arXiv:2212.09748, section 4",
        optimizer="adamw",
        lr_schedule="constant",
        warmup_images=0,
        weight_decay=0.0,
        flip=True,
    ),
    **_TORCH_BETAS,
    **_UNCLIPPED,
    **_BFLOAT16,
}


def _uvit(learning_rate: float, betas: tuple[float, float], warmup_steps: int, batch_size: int) -> dict[str, Setting]:
    return {
        **_LARGE,
        **_recalled(
            _UVIT,
            optimizer="adamw",
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=0.03,
            lr_schedule="constant",
            warmup_images=warmup_steps * batch_size,
            ema_decay=0.9999,
            flip=True,
        ),
        **_UNCLIPPED,
        **_ours("the authors train in mixed precision; bfloat16 needs no loss scale", precision="bfloat16"),
    }


_UVIT_NOTES = (
    "The authors decay all parameters; here biases, norms and the position table are not decayed.",
    "The authors' data set drops labels; here the loss does, with the model's class_dropout_prob.",
)
_UVIT_SETTINGS = {
    "cifar10": (_uvit(2e-4, (0.99, 0.999), 2_500, 128), 500_000, 128, ("CIFAR-10", 50_000)),
    "celeba64": (_uvit(2e-4, (0.99, 0.999), 5_000, 128), 500_000, 128, ("CelebA", 162_770)),
    "in64": (_uvit(3e-4, (0.99, 0.99), 5_000, 1_024), 300_000, 1_024, _IMAGENET),
    "in256": (_uvit(2e-4, (0.99, 0.99), 5_000, 1_024), 500_000, 1_024, _IMAGENET),
    "in512": (_uvit(2e-4, (0.99, 0.99), 5_000, 1_024), 500_000, 1_024, _IMAGENET),
}


def _edm(learning_rate: float, batch_size: int) -> dict[str, Setting]:
    return {
        **_LARGE,
        **_stated(f"{_DIFFIT}: Adam, which without decay is AdamW", optimizer="adamw"),
        **_stated(_DIFFIT, learning_rate=learning_rate),
        **_ours("no source mentions it", weight_decay=0.0),
        **_recalled(_EDM, betas=(0.9, 0.999), lr_schedule="constant", warmup_images=10_000_000),
        **_recalled(f"{_EDM}: half-life of 500,000 images", ema_decay=round(0.5 ** (batch_size / 500_000), 6)),
        **_ours("EDM mirrors as part of its augmentation", flip=True),
        **_UNCLIPPED,
        **_ours("no source gives it", precision="float32"),
    }


_EDM_NOTES = (
    "EDM's dropout and augmentation are not done.",
    "EDM's moving average looks less far back at first; ema_warmup does so in another way, and is off.",
)
_QUICK = _ours(
    "the quick benchmark's",
    num_images=48_000,
    batch_size=16,
    optimizer="adamw",
    learning_rate=4e-3,
    lr_schedule="cosine",
    warmup_images=1_000,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    ema_decay=0.99,
    max_grad_norm=1.0,
    precision="float32",
    data="digits",
)
_DIGITS = {**_QUICK, **_ours("at the end, where it takes seconds", evaluate_every=48_000)}
_TINY = ("dit_ti_2", "sit_ti_2", "uvit_ti_2", "mdt_ti_2", "mdtv2_ti_2", "diffit_ti_2", "diffit_unet_ti")


def _presets() -> list[Preset]:
    presets = [
        Preset(
            f"{name}.digits", "quick benchmark", "handwritten digits", 1_297, {**_model(f"{name}.digits"), **_DIGITS}
        )
        for name in _TINY
    ]

    def add(
        name: str,
        tag: str,
        common: Mapping[str, Setting],
        length: Mapping[str, Setting],
        *,
        model: Mapping[str, Setting] | None = None,
        data: tuple[str, int] = _IMAGENET,
        notes: tuple[str, ...] = (),
    ) -> None:
        values = {**(model or _model(name)), **common, **length}
        presets.append(Preset(f"{name}.{tag}", f"{name} on {data[0]}", *data, values, notes))

    for size in ("s", "b", "l", "xl"):
        for patch in (8, 4, 2):
            if (size, patch) != ("xl", 2):
                add(f"dit_{size}_{patch}", "in256", _DIT_COMMON, _steps("arXiv:2212.09748, table 4", 400_000, 256))
    add("dit_xl_2", "in256", _DIT_COMMON, _steps("arXiv:2212.09748, table 2", 7_000_000, 256))
    add(
        "dit_xl_2",
        "in512",
        _DIT_COMMON,
        _steps("arXiv:2212.09748, table 3", 3_000_000, 256),
        model=_model("dit_xl_2.in512"),
    )

    def sit_steps(table: int, steps: int) -> dict[str, Setting]:
        batch = _recalled(f"{_SIT} keeps DiT's: arXiv:2212.09748, section 4", batch_size=256)
        return {**_steps(f"{_SIT}, table {table}", steps, 256), **batch}

    for size in ("s", "b", "l"):
        add(f"sit_{size}_2", "in256", _SIT_COMMON, sit_steps(8, 400_000))
    add("sit_xl_2", "in256", _SIT_COMMON, sit_steps(7, 7_000_000))
    add("sit_xl_2", "in512", _SIT_COMMON, sit_steps(7, 3_000_000), model=_model("sit_xl_2", input_size=64))

    for name, tag in (
        *(("uvit_s_2", "cifar10"), ("uvit_s_4", "celeba64"), ("uvit_m_4", "in64"), ("uvit_l_4", "in64")),
        *(("uvit_l_2", "in256"), ("uvit_h_2", "in256"), ("uvit_l_4", "in512"), ("uvit_h_4", "in512")),
    ):
        common, steps, batch_size, data = _UVIT_SETTINGS[tag]
        steps = 300_000 if name == "uvit_l_2" else steps
        add(
            name,
            tag,
            common,
            _steps(_UVIT_LENGTH, steps, batch_size),
            model=_model(f"{name}.{tag}"),
            data=data,
            notes=_UVIT_NOTES,
        )

    for family, common, long, epochs, noted in (
        ("mdt", _MDT_COMMON, 6_500_000, "1,300 epochs in table 3 of arXiv:2501.01423", 2_500_000),
        ("mdtv2", _MDTV2_COMMON, 5_400_000, "1,080 epochs in the tables of arXiv:2507.01467", 4_600_000),
    ):
        source = f"{epochs}, {noted:,} steps in a note on arXiv:2303.14389"
        add(f"{family}_xl_2", "in256", common, _steps(source, long, 256, "recalled"))
        for size in ("s", "b"):
            noted = 300_000 if (family, size) == ("mdt", "s") else 400_000
            source = f"arXiv:2303.14389's results; a note on them has {noted:,}"
            add(f"{family}_{size}_2", "in256", common, _steps(source, 400_000, 256, "recalled"))

    for tag, images, batch_size, rate in (("in256", 7_000_000 * 256, 256, 3e-4), ("in512", 3_000_000 * 256, 512, 1e-4)):
        length = {
            **_ours(f"not known here; DiT's, {images // 256:,} steps of 256", num_images=images),
            **_recalled(_DIFFIT_LATENT, batch_size=batch_size, learning_rate=rate),
        }
        add("diffit_xl_2", tag, _DIFFIT_COMMON, length, model=_model(f"diffit_xl_2.{tag}"))
    for name, tag, rate, batch_size, data in (
        ("diffit_unet_32", "cifar10", 1e-3, 512, ("CIFAR-10", 50_000)),
        ("diffit_unet_64", "ffhq64", 2e-4, 256, ("FFHQ", 70_000)),
    ):
        length = _steps(_DIFFIT, 200_000, batch_size)
        add(name, tag, _edm(rate, batch_size), length, data=data, notes=_EDM_NOTES)
    return presets


_PRESETS = {preset.name: preset for preset in _presets()}
