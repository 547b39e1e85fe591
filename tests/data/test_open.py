"""A data set by its name."""

import shutil

import datasets
import pytest
from huggingface_hub import constants

from ditzoo.data import Digits, HubImages, HubStream, ImageFolder, LatentCache, TarFiles, open_source
from tests.data.latents import made
from tests.data.test_tars import samples, write_tar


def test_digits_have_a_size_of_their_own():
    source = open_source("digits")
    assert isinstance(source, Digits)
    assert (len(source), source.shape) == (1297, (1, 8, 8))
    assert len(open_source("digits:test", size=8, channels=1)) == 500
    with pytest.raises(ValueError, match=r"digits are grey images of 8x8 pixels: leave size \(256\)"):
        open_source("digits", size=256)
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        open_source("digits:valid")


def test_folders_and_tars_are_told_apart(pictures, tmp_path):
    source = open_source(str(pictures), size=16, channels=1, flip=True, max_unreadable=3)
    assert isinstance(source, ImageFolder)
    assert (source.shape, source.flip, source.max_unreadable, source.num_classes) == ((1, 16, 16), True, 3, 2)
    assert open_source(str(pictures), size=16, labels=False).num_classes == 0
    assert open_source(str(pictures), size=16, buckets=[(8, 32), (32, 8)]).shape == (3, 8, 32)
    write_tar(tmp_path / "a-0.tar", samples(0, 1))
    write_tar(tmp_path / "a-1.tar", samples(2, first=2))
    for spec in (f"{tmp_path}/*.tar", f"{tmp_path}/a-{{0..1}}.tar"):
        source = open_source(spec, size=8)
        assert isinstance(source, TarFiles)
        assert (len(source), source.num_classes) == (3, 3)


def test_latents_have_a_size_of_their_own(tmp_path):
    made(tmp_path, flip=True)
    source = open_source(str(tmp_path), flip=True, sample_posterior=False)
    assert isinstance(source, LatentCache)
    assert (source.flip, source.sample_posterior, open_source(str(tmp_path)).sample_posterior) == (True, False, True)
    with pytest.raises(ValueError, match="holds latents, whose images were read before: leave size and channels out"):
        open_source(str(tmp_path), size=8, channels=1)
    with pytest.raises(ValueError, match="leave buckets out"):
        open_source(str(tmp_path), buckets=[(8, 8)])


def test_a_manifest_of_another_program_leaves_images_what_they_are(pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    (folder / "manifest.json").write_text('{"name": "an app"}')
    assert isinstance(open_source(str(folder), size=8), ImageFolder)


def test_data_sets_of_the_hub_are_told_by_their_prefix(pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert isinstance(open_source(f"hf:{pictures}", size=16), HubImages)
    stream = open_source(f"hf-stream:{pictures}", size=16, flip=True)
    assert isinstance(stream, HubStream)
    assert (len(stream), stream.num_classes, stream.flip) == (320, 2, True)
    with pytest.raises(ValueError, match=r"a stream has no buckets: leave buckets out, or load hf-stream:.* whole"):
        open_source(f"hf-stream:{pictures}", size=16, buckets=[(16, 16)])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="the data set owner/name is not on this machine"):
        open_source("hf:owner/name", size=16)


def test_what_is_nowhere_names_the_kinds_of_data(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*/x\. Data are 'digits', a folder .*'hf:owner/name'"
    ):
        open_source(str(tmp_path / "x"), size=8)
    with pytest.raises(FileNotFoundError, match=r"there is no tar file .*/x\.tar"):
        open_source(str(tmp_path / "x.tar"), size=8)
    with pytest.raises(ValueError, match="have no size of their own; set size, such as size=256"):
        open_source(str(tmp_path))
