"""The catalogue of published weights: where each copy lies, its licence and its printed results; fetching by name."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

import ditzoo
from ditzoo.models import Checkpoint, PublishedFile
from ditzoo.registry import MissingWeightsError
from ditzoo.weights import DownloadError, catalogue, fetch_published, note_licence, published_results
from ditzoo.weights.published import headline_results
from ditzoo.weights.records import WeightsRecord, add_record
from tests.weights.file_server import serving

TAGGED = ditzoo.list_models(pretrained=True)
PUBLISHED = [name for name in TAGGED if not name.endswith(".digits")]

_DIT = "https://dl.fbaipublicfiles.com/DiT/models"
_SIT = "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0"
_MDT_V2 = "84bf27292f9b001c82f2863b55861752ab177507"
#: What the authors' repositories say: of each copy the layout, the file, and (repository, revision), address or id.
FILES = {
    "dit_xl_2.in256": [
        ("official", "DiT-XL-2-256x256.pt", f"{_DIT}/DiT-XL-2-256x256.pt"),
        ("diffusers", "transformer", ("facebook/DiT-XL-2-256", None)),
    ],
    "dit_xl_2.in512": [
        ("official", "DiT-XL-2-512x512.pt", f"{_DIT}/DiT-XL-2-512x512.pt"),
        ("diffusers", "transformer", ("facebook/DiT-XL-2-512", None)),
    ],
    "mdt_xl_2.in256": [("official", "mdt_xl2_v1_ckpt.pt", ("shgao/MDT-XL2", None))],
    "mdtv2_xl_2.in256": [("official", "mdt_xl2_v2_ckpt.pt", ("shgao/MDT-XL2", _MDT_V2))],
    "diffit_xl_2.in256": [("official", "diffit_256.safetensors", ("nvidia/DiffiT", None))],
    "diffit_xl_2.in512": [("official", "diffit_512.safetensors", ("nvidia/DiffiT", None))],
    "sit_xl_2.in256": [("official", "SiT-XL-2-256x256.pt", _SIT)],
    "uvit_s_2.cifar10": [("official", "cifar10_uvit_small.pth", "1yoYyuzR_hQYWU0mkTj659tMTnoCWCMv-")],
    "uvit_s_4.celeba64": [("official", "celeba64_uvit_small.pth", "13YpbRtlqF1HDBNLNRlKxLTbKbKeLE06C")],
    "uvit_m_4.in64": [("official", "imagenet64_uvit_mid.pth", "1igVgRY7-A0ZV3XqdNcMGOnIGOxKr9azv")],
    "uvit_l_4.in64": [("official", "imagenet64_uvit_large.pth", "19rmun-T7RwkNC1feEPWinIo-1JynpW7J")],
    "uvit_l_2.in256": [("official", "imagenet256_uvit_large.pth", "1w7T1hiwKODgkYyMH9Nc9JNUThbxFZgs3")],
    "uvit_h_2.in256": [("official", "imagenet256_uvit_huge.pth", "13StUdrjaaSXjfqqF7M47BzPyhMAArQ4u")],
    "uvit_l_4.in512": [("official", "imagenet512_uvit_large.pth", "1mkj4aN2utHMBTWQX9l1nYue9vleL7ZSB")],
    "uvit_h_4.in512": [("official", "imagenet512_uvit_huge.pth", "1uegr2o7cuKXtf2akWGAN2Vnlrtw5YKQq")],
}  # fmt: skip
#: family -> licence of the weights, whether it is non-commercial, whether they are a moving average
LICENCES = {
    "dit": ("CC-BY-NC-4.0", True, True),
    "uvit": ("none stated for the weights; the code is MIT", False, None),
    "mdt": ("none stated for the weights; the code is Apache-2.0", False, None),
    "diffit": ("CC-BY-NC-SA-4.0", True, None),
    "sit": ("none stated for the weights; the code is MIT", False, None),
}


def place(file: PublishedFile) -> object:
    return (file.repo_id, file.revision) if file.repo_id else file.url or file.drive_id


# What is in the catalogue.


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_copy_is_where_the_authors_put_it(name):
    info = ditzoo.model_info(name)
    assert [(file.layout, file.name, place(file)) for file in info.files] == FILES[name]
    assert all(file.url is None or file.url.startswith("https://") for file in info.files)
    assert info.files[0].name in info.source
    assert (info.licence, info.is_non_commercial, info.ema) == LICENCES[info.family]


def test_no_file_is_in_the_catalogue_twice_and_none_has_facts_that_nobody_checked():
    files = [file for name in PUBLISHED for file in ditzoo.model_info(name).files]
    assert len({(file.repo_id, file.name, file.url, file.drive_id) for file in files}) == len(files) == 17
    assert {(file.num_bytes, file.sha256) for file in files} == {(None, None)}


def test_weights_that_come_with_ditzoo_have_no_files():
    packaged = [name for name in TAGGED if name not in PUBLISHED]
    assert len(packaged) == 7
    for name in packaged:
        info = ditzoo.model_info(name)
        assert (info.packaged, info.files, info.ema, info.is_non_commercial) == (True, (), True, False)
    bare = ditzoo.model_info("dit_xl_2")
    assert (bare.files, bare.ema, bare.is_non_commercial) == ((), None, False)


def test_a_file_lies_in_one_place():
    with pytest.raises(ValueError, match=r"a\.pt lies in one place: give repo_id, url or drive_id, got none"):
        PublishedFile(name="a.pt")
    with pytest.raises(ValueError, match=r"'me/it', 'https://x/a\.pt'"):
        PublishedFile(name="a.pt", repo_id="me/it", url="https://x/a.pt")
    with pytest.raises(ValueError, match="needs files, or a source"):
        Checkpoint(config={}, licence="MIT", data="digits")


def test_sources_of_files():
    keyed = PublishedFile(name="a.pt", url="https://host/b.pt?key=SECRET")
    assert (keyed.source, keyed.page) == ("https://host/b.pt (a.pt)", "https://host/b.pt?key=SECRET")
    assert PublishedFile(name="a.pt", url="https://host/a.pt").source == "https://host/a.pt"
    assert PublishedFile(name="a.pt", repo_id="me/it").source == "https://huggingface.co/me/it (a.pt)"
    assert PublishedFile(name="a.pt", drive_id="X").source == "https://drive.google.com/file/d/X (a.pt)"


# Printed results.


def test_printed_results_are_typed():
    results = published_results("dit_xl_2.in256")
    assert len(results) == 8
    best = next(result for result in results if result.fid == 2.27)
    assert best._asdict() == {
        "name": "dit_xl_2.in256",
        "model": "DiT-XL/2-G",
        "dataset": "ImageNet-1k",
        "resolution": 256,
        "training": "7M",
        "guidance": "1.50, first 3 channels",
        "sampler": "250 DDPM",
        "fid": 2.27,
        "sfid": 4.60,
        "inception_score": 278.24,
        "precision": 0.83,
        "recall": 0.57,
        "measured_by": "authors",
        "source": "arXiv:2212.09748, tables 2 and 5 (ft-EMA decoder); "
        "github.com/facebookresearch/DiT@ed81ce222909 README",
        "confidence": "primary",
    }
    port = next(result for result in results if result.fid == 2.21)
    assert (port.sfid, port.inception_score, port.precision, port.recall, port.num_figures) == (None,) * 4 + (1,)
    assert {result.measured_by for result in results} == {"authors", "others"}
    assert published_results("dit_ti_2") == ()
    with pytest.raises(ValueError, match=r"Unknown tag 'in1024' of dit_xl_2"):
        published_results("dit_xl_2.in1024")


@pytest.mark.parametrize(
    ("name", "fids"),
    [
        ("dit_xl_2.in256", [9.62, 2.27]),
        ("dit_xl_2.in512", [12.03, 3.04]),
        ("uvit_m_4.in64", [5.85]),
        ("uvit_h_2.in256", [6.58, 2.29]),
        ("mdtv2_xl_2.in256", [1.58]),
        ("diffit_xl_2.in512", [2.67]),
        ("sit_xl_2.in256", [8.26, 2.06]),
    ],
)
def test_headlines_are_the_authors_best_without_and_with_guidance(name, fids):
    assert [result.fid for result in headline_results(name)] == fids


def test_all_published_weights_have_a_headline():
    assert all(headline_results(name) for name in PUBLISHED)


# The licence is told once.


@pytest.mark.parametrize(
    ("name", "licence"), [("dit_xl_2.in512", "CC-BY-NC-4.0"), ("diffit_xl_2.in512", "CC-BY-NC-SA-4.0")]
)
def test_a_non_commercial_licence_is_logged_once(name, licence, caplog, monkeypatch):
    monkeypatch.setattr(catalogue, "_noted", set())
    note_licence(name)
    note_licence(name)
    assert caplog.record_tuples == [
        ("ditzoo", logging.WARNING, f"The weights of {name} are under {licence}, which allows no commercial use.")
    ]
    note_licence(name.replace("in512", "in256"))
    assert len(caplog.records) == 2


def test_other_licences_are_not_logged(caplog):
    for name in TAGGED:
        if not ditzoo.model_info(name).is_non_commercial:
            note_licence(name)
    note_licence("dit_xl_2")
    assert caplog.records == []
    with pytest.raises(ValueError, match="Unknown model"):
        note_licence("dit_xl")


# Fetching by name.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine: the calls it got, and the file or folder that it gives."""
    calls = []
    (tmp_path / "file").write_bytes(b"weights")
    (tmp_path / "transformer").mkdir()

    def fetch_file(repo_id: str, filename: str, *, revision: str | None = None) -> Path:
        calls.append((repo_id, filename, revision))
        return tmp_path / "file"

    def fetch_transformer(repo_id: str, folder: str, *, revision: str | None = None) -> Path:
        calls.append((repo_id, folder, revision))
        return tmp_path / folder

    monkeypatch.setattr(catalogue, "fetch_file", fetch_file)
    monkeypatch.setattr(catalogue, "fetch_transformer", fetch_transformer)
    return calls


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("uvit")])
def test_what_lies_at_google_drive_is_fetched_by_hand(name):
    _, file, drive_id = FILES[name][0]
    with pytest.raises(MissingWeightsError) as caught:
        fetch_published(name)
    assert str(caught.value) == (
        f"Google Drive cannot be downloaded by program. Open https://drive.google.com/file/d/{drive_id}, save {file}, "
        f'then ditzoo.create("{name}", checkpoint="path/to/{file}").'
    )


def test_names_without_files():
    with pytest.raises(MissingWeightsError, match=r"of dit_ti_2\.digits come with ditzoo; ditzoo\.create\('dit_ti_2"):
        fetch_published("dit_ti_2.digits")
    with pytest.raises(MissingWeightsError, match=r"give one of its tags: dit_xl_2\.in256, dit_xl_2\.in512\."):
        fetch_published("dit_xl_2")
    with pytest.raises(MissingWeightsError, match="No files are known of the weights of dit_s_2"):
        fetch_published("dit_s_2")
    with pytest.raises(ValueError, match="Did you mean dit_xl_2"):
        fetch_published("dit_xl2.in256")


def test_the_first_file_is_fetched_or_the_one_asked_for(published, hub):
    with serving(b"official weights") as server:
        url = PublishedFile(name="saved.pt", url=server.url)
        folder = PublishedFile(name="transformer", layout="diffusers", repo_id="me/dit", revision="abc")
        name = published(url, folder)
        path = fetch_published(name)
        assert (path.name, path.read_bytes()) == ("saved.pt", b"official weights")
        assert hub == []
        assert fetch_published(name, folder).is_dir()
        assert hub == [("me/dit", "transformer", "abc")]


def test_files_of_the_hub_are_fetched_at_their_revision(hub):
    assert fetch_published("mdtv2_xl_2.in256").read_bytes() == b"weights"
    fetch_published("mdt_xl_2.in256")
    assert hub == [
        ("shgao/MDT-XL2", "mdt_xl2_v2_ckpt.pt", _MDT_V2),
        ("shgao/MDT-XL2", "mdt_xl2_v1_ckpt.pt", None),
    ]


def test_a_failure_names_the_other_place(published):
    with serving(b"") as server:
        server.plan = [404]
        name = published(
            PublishedFile(name="weights.pt", url=server.url),
            PublishedFile(name="transformer", layout="diffusers", repo_id="me/dit"),
            PublishedFile(name="copy.pt", repo_id="me/copies", revision="v1"),
        )
        with pytest.raises(DownloadError) as caught:
            fetch_published(name)
    assert re.search(
        r"404 Not Found\..* The same weights are at https://huggingface\.co/me/dit \(transformer\): "
        r"ditzoo\.create\('dit_ti_2\.small', checkpoint='hf-hub:me/dit'\), or at https://huggingface\.co/me/copies "
        r"\(copy\.pt\): ditzoo\.create\('dit_ti_2\.small', checkpoint='hf-hub:me/copies/copy\.pt@v1'\)\.$",
        str(caught.value),
    )
    assert "SECRET" not in str(caught.value)


def test_another_size_than_the_authors_is_refused(published, hub):
    name = published(PublishedFile(name="weights.pt", repo_id="me/dit", num_bytes=8))
    with pytest.raises(
        DownloadError, match=r"has 7 bytes, where 8 were expected of https://huggingface\.co/me/dit \(weig"
    ):
        fetch_published(name)
    with serving(b"weights") as server:
        name = published(PublishedFile(name="weights.pt", url=server.url, num_bytes=8))
        with pytest.raises(DownloadError, match="has 7 bytes, where 8 were expected"):
            fetch_published(name)


@pytest.mark.filterwarnings("error")
def test_another_size_than_the_recorded_one_is_a_warning(hub):
    record = WeightsRecord("mdt_xl2_v1_ckpt.pt", 8, "0" * 64, None, None, date(2026, 1, 2).isoformat())
    add_record("mdt_xl_2.in256", replace(record, num_bytes=7, file="another.pt"))
    fetch_published("mdt_xl_2.in256")
    add_record("mdt_xl_2.in256", record)
    with pytest.warns(UserWarning, match=r"has 7 bytes; the mdt_xl2_v1_ckpt\.pt that passed .* on 2026-01-02 had 8\."):
        fetch_published("mdt_xl_2.in256")
    add_record("mdt_xl_2.in256", replace(record, num_bytes=7, sha256="1"))
    fetch_published("mdt_xl_2.in256")
