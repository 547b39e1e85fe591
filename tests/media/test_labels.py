"""Names of classes, and what users write to choose among them."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.media import LabelNames, parse_labels

IMAGENET, DIGITS = LabelNames.imagenet(), LabelNames.digits()


def test_imagenet_names_never_change():
    assert len(IMAGENET) == 1000
    digest = hashlib.sha256("\n".join(IMAGENET).encode()).hexdigest()
    assert digest == "a40d9be82eb4738becd1dd69991b89f87f309975e860a6f3f45395d8c06a7e0d"


@pytest.mark.parametrize(
    ("label", "name", "short"),
    [
        (0, "tench, Tinca tinca", "tench"),
        (207, "golden retriever", "golden retriever"),
        (387, "lesser panda, red panda, panda, bear cat, cat bear, Ailurus fulgens", "lesser panda"),
        (949, "strawberry", "strawberry"),
        (999, "toilet tissue, toilet paper, bathroom tissue", "toilet tissue"),
    ],
)
def test_the_usual_indices(label, name, short):
    assert IMAGENET[label] == name
    assert IMAGENET[np.int64(label)] == IMAGENET[torch.tensor(label)] == name
    assert IMAGENET.short(label) == short
    assert list(IMAGENET)[label] == name


def test_the_file_is_what_its_header_says():
    timm_data = pytest.importorskip("timm.data", reason="the names come from timm; pip install 'ditzoo[train]'")
    assert list(IMAGENET) == timm_data.ImageNetInfo().label_descriptions()


@pytest.mark.parametrize("label", [-1, 1000])
def test_numbers_out_of_range(label):
    with pytest.raises(IndexError, match=f"no class {label}: they go from 0 to 999"):
        IMAGENET[label]


@pytest.mark.parametrize(
    ("name", "label"),
    [("strawberry", 949), ("STRAWBERRY ", 949), ("Tinca  tinca", 0), ("red panda", 387), ("maillot, tank suit", 639)],
)
def test_find(name, label):
    assert IMAGENET.find(name) == label


def test_every_name_that_one_class_has_is_found():
    every = [(label, synonym.strip()) for label, name in enumerate(IMAGENET) for synonym in name.split(",")]
    shared = {"crane", "panda", "maillot", "cardigan", "missile"}
    ambiguous = set()
    for label, synonym in every:
        try:
            assert IMAGENET.find(synonym.upper()) == label
        except ValueError:
            ambiguous.add(synonym)
    assert shared <= ambiguous
    assert len(ambiguous) == 20  # 19 names: "cardigan" is a dog, too, with a capital
    assert len(every) == 1860


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("crane", r"^several classes are named 'crane': 134 \(crane\), 517 \(crane\)\. Give the number\.$"),
        ("maillot", r"'maillot': 638 \(maillot\), 639 \(maillot, tank suit\)"),
        ("cat", r"^no class is named 'cat'\. Near are tabby cat \(281\), tiger cat \(282\), Persian cat \(283\), "),
        ("strawbery", r"'strawbery'\. Near are strawberry \(949\)"),
        ("qqqqqq", r"^no class is named 'qqqqqq'\. Give a number from 0 to 999\.$"),
        ("", r"no class is named ''\. Give a number from 0 to 999\.$"),
        ("c++ (", r"no class is named 'c\+\+ \('"),
    ],
)
def test_names_that_are_none(name, text):
    with pytest.raises(ValueError, match=text):
        IMAGENET.find(name)


def test_get_label_ids():
    assert IMAGENET.get_label_ids(["strawberry", "golden retriever", "strawberry"]) == [949, 207, 949]
    assert IMAGENET.get_label_ids("golden retriever") == [207]
    assert IMAGENET.get_label_ids([]) == []
    with pytest.raises(ValueError, match="'cat'"):
        IMAGENET.get_label_ids(["strawberry", "cat"])


def test_digits():
    assert len(DIGITS) == 10
    assert DIGITS.get_label_ids([str(digit) for digit in range(10)]) == list(range(10))
    words = "zero one two three four five six seven eight nine"
    assert DIGITS.get_label_ids(words.split()) == list(range(10))
    assert [DIGITS.short(digit) for digit in range(10)] == list("0123456789")


@pytest.mark.parametrize("name", ["", "a,,b", "a, "])
def test_every_class_has_a_name(name):
    with pytest.raises(ValueError, match="class 1 lacks a name"):
        LabelNames(["dog", name])


# What users write.


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0-9", list(range(10))),
        ("3,5,strawberry", [3, 5, 949]),
        ("strawberry", [949]),
        (" 7 , 3 - 5,3,golden retriever ", [7, 3, 4, 5, 3, 207]),
        ("5-5", [5]),
        ("007", [7]),
        ("990-999", list(range(990, 1000))),
        ("black-and-tan coonhound", [165]),
    ],
)
def test_parse(text, labels):
    assert parse_labels(text, num_classes=1000, names=IMAGENET) == labels


def test_parse_several_texts():
    assert parse_labels("0-2", "zero,9", num_classes=10, names=DIGITS) == [0, 1, 2, 0, 9]
    assert parse_labels("0-2", "9", num_classes=10) == [0, 1, 2, 9]
    assert parse_labels(num_classes=10) == []


@given(st.lists(st.one_of(st.integers(0, 99), st.tuples(st.integers(0, 99), st.integers(0, 99)))))
def test_parse_undoes_writing(parts):
    parts = [tuple(sorted(part)) if isinstance(part, tuple) else part for part in parts]
    texts = [f"{part[0]}-{part[1]}" if isinstance(part, tuple) else str(part) for part in parts]
    expected = []
    for part in parts:
        expected += [part] if isinstance(part, int) else list(range(part[0], part[1] + 1))
    assert parse_labels(*texts, num_classes=100) == expected
    if texts:
        assert parse_labels(", ".join(texts), num_classes=100) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,10", "there is no class 10: classes go from 0 to 9"),
        ("-1", "there is no class -1: classes go from 0 to 9"),
        ("7-12", "range '7-12' goes too far: classes go from 0 to 9"),
        ("0-99999999999999", "range '0-99999999999999' goes too far"),
        ("5-2", "range '5-2' runs backwards; write 2-5"),
        ("1,,2", "'1,,2' has an empty part; write numbers, ranges such as 0-9 or names between commas"),
        ("", "'' has an empty part"),
        ("tree", r"no class is named 'tree'\. Near are three \(3\)"),
        ("1.5", r"no class is named '1\.5'"),
    ],
)
def test_parts_that_are_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_labels(text, num_classes=10, names=DIGITS)


def test_classes_without_names():
    text = "'cat' is neither a number nor a range, and these classes have no names: classes go from 0 to 4"
    with pytest.raises(ValueError, match=text):
        parse_labels("1,cat", num_classes=5)


def test_models_that_the_names_are_not_of():
    with pytest.raises(ValueError, match="there are names of 1000 classes, but the model has 10"):
        parse_labels("1", num_classes=10, names=IMAGENET)
    with pytest.raises(ValueError, match="the model has no classes to choose from, so leave out 1,2"):
        parse_labels("1,2", num_classes=0)
