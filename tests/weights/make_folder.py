"""Write the folder that tests keep of the version of the format that is written: run it once, when that is new.

python -m tests.weights.make_folder
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo.models import DiT
from ditzoo.weights.folders import SCHEMA_VERSION, save_model
from tests.weights.test_folders import FOLDERS, detailed
from tests.zoo import inputs, lively

OPTIONS = {"hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3, "class_dropout_prob": 0.25}


def main() -> None:
    folder = FOLDERS / f"version-{SCHEMA_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder} is there: folders of a version that was published are never written again.")
    model = detailed(lively("dit_ti_2", **OPTIONS))
    weak = lively("dit_ti_2", **{**OPTIONS, "hidden_size": 8})
    save_model(model, folder, weak_model=weak)
    again = DiT.from_pretrained(folder)
    x, t, y = inputs(again)
    with torch.no_grad():
        output = again(x, t, y)
    samples = ditzoo.Pipeline.from_pretrained(folder)(["two", 0], seed=3).latents
    save_file({"x": x, "t": t, "y": y, "output": output, "samples": samples}, folder / "outputs.safetensors")


if __name__ == "__main__":
    main()
