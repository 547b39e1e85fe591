"""Published results on the pages are those of the papers."""

from __future__ import annotations

import re

import pytest

import ditzoo
from ditzoo.weights.published import agrees, result_rows
from tests.docs.pages import FAMILY_PAGES, hooks, text_of


def test_published_results_are_of_known_models_and_name_their_sources():
    rows = result_rows()
    assert len(rows) == 106
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    known = {*ditzoo.list_models(), *ditzoo.list_models(pretrained=True), ""}
    for row in rows:
        assert row["name"] in known
        assert row["family"] in FAMILY_PAGES
        assert not row["name"] or ditzoo.model_info(row["name"]).family == row["family"]
        assert row["source"]
        assert row["confidence"] in ("primary", "secondary")
        assert row["measured_by"] in ("authors", "others")
        assert float(row["fid"]) > 1
        for score in ("precision", "recall"):
            assert not row[score] or 0 < float(row[score]) < 1


#: What the authors measured with their published weights: name, guidance, sampling -> FID, sFID, IS, precision, recall.
#: Read in papers and repositories, not in the file that is tested. These settings name one row each.
MEASURED = {
    ("dit_xl_2.in256", "none", "250 DDPM"): "9.62 6.85 121.50 0.67 0.67",
    ("dit_xl_2.in256", "1.25, first 3 channels", "250 DDPM"): "3.22 5.28 201.77 0.76 0.62",
    ("dit_xl_2.in256", "1.375, all 4 channels", "250 DDPM"): "2.20",
    ("dit_xl_2.in256", "1.50", "250 DDPM"): "2.21",
    ("dit_xl_2.in512", "1.25, first 3 channels", "250 DDPM"): "4.64 5.77 174.77 0.81 0.57",
    ("dit_xl_2.in512", "1.50, first 3 channels", "250 DDPM"): "3.04 5.02 240.82 0.84 0.54",
    ("uvit_s_2.cifar10", "none", "1000 Euler-Maruyama"): "3.11",
    ("uvit_s_4.celeba64", "none", "1000 Euler-Maruyama"): "2.87",
    ("uvit_m_4.in64", "none", "50 DPM-Solver"): "5.85 33.71",
    ("uvit_l_4.in64", "none", "50 DPM-Solver"): "4.26 40.66",
    ("uvit_l_2.in256", "w = 0.4", "50 DPM-Solver"): "3.40 219.9 0.83 0.52",
    ("uvit_h_2.in256", "w = 0.4", "50 DPM-Solver++"): "2.29 5.68 263.88 0.82 0.57",
    ("uvit_h_2.in256", "none", ""): "6.58",
    ("uvit_l_4.in512", "w = 0.7", "50 DPM-Solver"): "4.67",
    ("uvit_h_4.in512", "w = 0.7", "50 DPM-Solver++"): "4.05 6.44 263.79 0.84 0.48",
    ("mdt_xl_2.in256", "none", ""): "6.23 5.23 143.02 0.71 0.65",
    ("mdt_xl_2.in256", "power-cosine", "250 DDPM"): "1.79 4.57 283.01 0.81 0.61",
    ("mdtv2_xl_2.in256", "power-cosine", "250 DDPM"): "1.58 4.52 314.73 0.79 0.65",
    ("diffit_xl_2.in256", "power-cosine to 4.6 (paper) or 4.4 (README)", "250 DDPM"): "1.73 4.54 276.49 0.8024 0.6205",
    ("diffit_xl_2.in512", "1.49", "250 DDPM"): "2.67 4.99 252.13 0.8277 0.5500",
    ("diffit_unet_32", "none", "18 EDM, deterministic"): "1.95",
    ("diffit_unet_64", "none", "40 EDM, deterministic"): "2.22",
    ("sit_xl_2.in256", "none", "125 Heun (ODE)"): "9.35 6.38 126.06 0.67 0.68",
    ("sit_xl_2.in256", "none", "250 Euler-Maruyama (SDE)"): "8.26 6.32 131.65 0.68 0.67",
    ("sit_xl_2.in256", "1.5", "125 Heun (ODE)"): "2.15 4.60 258.09 0.81 0.60",
    ("sit_xl_2.in256", "1.5", "250 Euler-Maruyama (SDE)"): "2.06 4.49 277.50 0.83 0.59",
    ("sit_xl_2.in256", "1.5", ""): "2.06 270.27",  # the README's
}
#: The same where settings do not tell rows apart: name, model as printed -> FID, of several rows in their order.
TOLD_APART = {
    ("dit_xl_2.in256", "DiT-XL/2-G"): "3.22 2.27",
    ("dit_xl_2.in256", "DiT-XL/2-G, original LDM decoder"): "2.46",
    ("dit_xl_2.in256", "DiT-XL/2-G, ft-MSE decoder"): "2.30",
    ("dit_xl_2.in512", "DiT-XL/2"): "12.03",
    ("dit_xl_2.in512", "DiT-XL/2, ft-MSE decoder"): "11.93",
    ("dit_xl_2", "DiT-XL/2"): "19.47 10.67",
    ("dit_xl_2_adaln", "DiT-XL/2, adaLN"): "25.21",
    ("dit_xl_2_crossattn", "DiT-XL/2, cross-attention"): "26.14",
    ("dit_xl_2_incontext", "DiT-XL/2, in-context"): "35.24",
}


def of_authors(**facts: str) -> list[dict[str, str]]:
    """Rows of what the authors measured that have these facts."""
    return [row for row in result_rows() if ({"measured_by": "authors"} | facts).items() <= row.items()]


@pytest.mark.parametrize(("name", "guidance", "sampling"), MEASURED)
def test_published_results_are_what_the_papers_print(name, guidance, sampling):
    (row,) = of_authors(name=name, guidance=guidance, sampler_steps=sampling)
    scores = [row[key] for key in ("fid", "sfid", "is", "precision", "recall")]
    assert " ".join(filter(None, scores)) == MEASURED[name, guidance, sampling]


@pytest.mark.parametrize(("name", "model"), TOLD_APART)
def test_published_results_of_equal_settings_are_what_the_papers_print(name, model):
    assert " ".join(row["fid"] for row in of_authors(name=name, model=model)) == TOLD_APART[name, model]


def test_every_result_of_published_weights_is_compared_with_a_literal():
    rows = [row for row in of_authors() if "." in row["name"]]
    assert len(rows) == 30
    for row in rows:
        settings = row["name"], row["guidance"], row["sampler_steps"]
        assert settings in MEASURED or (row["name"], row["model"]) in TOLD_APART


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("dit", "XL/2 at 512 without guidance has 11.93 in table 4 and 12.03 in table 3."),
        ("dit", "The headline of 2.27 is the paper's, computed in JAX. The README of the PyTorch code gives 2.21"),
        ("dit", "at 400K steps the paper has 35.24, 26.14, 25.21 and 19.47."),
        (
            "diffit",
            "FID 1.95 for CIFAR-10 and 2.22 for FFHQ at 64x64 are those of `diffit_unet_32` and `diffit_unet_64`",
        ),
        ("diffit", "is 252.12 in the paper and 252.13 among the README's expected results."),
        ("sit", "the paper's second version has IS 277.50, sFID 4.49 and precision 0.83 with the SDE; the README and"),
        ("sit", "later papers have 270.27, 4.50 and 0.82."),
        ("sit", "8.26 (or 8.3) with the SDE, and 8.61 in the tables of two later papers, LightningDiT and REPA-E."),
        ("sit", "**2.15 and 2.06.** The paper gives the first to the ODE and the second to the SDE."),
    ],
)
def test_results_that_pages_repeat(page, text):
    assert text in " ".join(text_of(FAMILY_PAGES[page]).split())


def test_the_table_of_pretrained_weights_has_every_copy_its_licence_and_the_best_result():
    lines = [line.strip("| ").split(" | ") for line in hooks().pretrained_table().splitlines()[2:]]
    rows = {name.strip("`"): (licence, ema, copies, result) for name, licence, ema, copies, result in lines}
    published = [name for name in ditzoo.list_models(pretrained=True) if not name.endswith(".digits")]
    assert sorted(rows) == sorted(published)
    for name, (licence, _, copies, _) in rows.items():
        info = ditzoo.model_info(name)
        assert licence == f"{info.licence}{', no commercial use' if name.startswith(('dit_', 'diffit_')) else ''}"
        assert [copy.split(",")[0] for copy in copies.split("<br>")] == [
            f"[{file.name}]({file.page})" for file in info.files
        ]
        assert copies.count(" not verified") == len(info.files)
        assert copies.count(", by hand, ") == name.startswith("uvit_")
    _, ema, copies, result = rows["dit_xl_2.in512"]
    assert ema == "yes"
    assert copies.startswith("[DiT-XL-2-512x512.pt](https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt), ")
    assert result.startswith("**3.04**, guidance 1.50, first 3 channels; 250 DDPM<br>[arXiv:2212.09748](https://arxiv")
    _, ema, copies, _ = rows["mdtv2_xl_2.in256"]
    assert ema == "not stated"
    assert "(https://huggingface.co/shgao/MDT-XL2), from the Hub, the authors' layout; revision 84bf27292f9b" in copies
    assert rows["uvit_h_2.in256"][3].endswith(", second-hand")
    assert rows["sit_xl_2.in256"][3].startswith("**2.06**, guidance 1.5; 250 Euler-Maruyama (SDE)<br>")


def test_published_sizes_are_those_of_the_models():
    """Where a row is for the input that the name builds; version 2 of MDT is quoted with the numbers of version 1."""
    checked = 0
    for row in result_rows():
        info = ditzoo.model_info(row["name"]) if row["name"] else None
        side = int(row["resolution"]) // (8 if info and info.config["in_channels"] == 4 else 1)
        if info is None or info.config["input_size"] != side or row["name"].startswith("mdtv2"):
            continue
        if row["params_m"] and row["name"] != "mdt_xl_2.in256":  # quoted without its side block
            assert info.num_params / 1e6 == pytest.approx(float(row["params_m"]), abs=1.1), row["model"]
            checked += 1
        if row["gmacs"]:
            counted = hooks().count(row["name"])
            value = counted.gmacs_without_attention if row["family"] == "diffit" else counted.gmacs
            assert agrees(value, row["gmacs"]), row["model"]
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("family", FAMILY_PAGES)
def test_pages_show_every_published_result(family):
    groups = re.findall(rf"^\{{\{{ result_table {family} (\w+) \}}\}}$", text_of(FAMILY_PAGES[family]), re.MULTILINE)
    tables = "\n".join(hooks().result_table(family, group) for group in groups)
    rows = [row for row in result_rows() if row["family"] == family]
    assert len(re.findall(r"\| \(\d+\) \|$", tables, re.MULTILINE)) == len(rows)
    for row in rows:
        assert f" {row['fid']} " in tables


def test_result_tables_say_once_what_all_rows_share():
    table = hooks().result_table("dit", "authors")
    assert table.startswith("All rows: images ImageNet-1k; sampling 250 DDPM.\n")
    assert "| DiT-XL/2 |  | 512 | 1301K | none | 13.78 | (1) |" in table
    assert "| U-ViT-L/4<br>`uvit_l_4.in64` | ImageNet-1k 64 | 300K, batch 1024 |" in hooks().result_table(
        "uvit", "weights"
    )
    assert "1. [arXiv:2212.09748](https://arxiv.org/abs/2212.09748), table 4 (ft-MSE decoder)\n" in table
    assert "second-hand" not in table
    others = hooks().result_table("sit", "others")
    assert "[github.com/willisma/SiT](https://github.com/willisma/SiT), issue 31" in others
    assert others.count(", second-hand") == 3
    assert "[github.com/sail-sg/MDT@7d26c2162c46](https://github.com/sail-sg/MDT/tree/7d26c2162c46) README" in (
        hooks().result_table("mdt", "weights")
    )
