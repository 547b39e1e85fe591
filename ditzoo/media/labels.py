"""Names of classes: ImageNet's thousand and the ten digits, and what users write to choose among them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import SupportsIndex

_NUM_SUGGESTIONS = 5
_NULL = "null"
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


class LabelNames:
    """The names of classes 0, 1, 2, ... in order. `names[207]` is a name with its synonyms, `len(names)` their number.

    Args:
        names: one for each class; commas separate synonyms, as in `"tench, Tinca tinca"`.

    Raises:
        ValueError: a class without a name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        #: name in lower case -> ids of the classes that have it
        self._ids: dict[str, list[int]] = {}
        #: the same -> as it is written
        self._written: dict[str, str] = {}
        for label, name in enumerate(self._names):
            synonyms = [synonym.strip() for synonym in name.split(",")]
            if not all(synonyms):
                raise ValueError(f"class {label} lacks a name: {name!r}.")
            for synonym in dict.fromkeys([*synonyms, name]):
                ids = self._ids.setdefault(_key(synonym), [])
                if label not in ids:
                    ids.append(label)
            self._written.update({_key(synonym): synonym for synonym in synonyms})

    @classmethod
    def imagenet(cls) -> LabelNames:
        """The 1,000 classes of ImageNet-1k, by the indices that all published models use."""
        text = (files("ditzoo.media") / "imagenet_classes.txt").read_text(encoding="utf-8")
        return cls([line for line in text.splitlines() if not line.startswith("#")])

    @classmethod
    def digits(cls) -> LabelNames:
        """The ten digits, as `"3"` and as `"three"`."""
        words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        return cls([f"{digit}, {word}" for digit, word in enumerate(words)])

    @classmethod
    def of_data(cls, data: str | None) -> LabelNames | None:
        """The names of the classes of a data set, as published weights name it; None where they are not known."""
        if data is not None and data.startswith("ImageNet-1k"):
            return cls.imagenet()
        return cls.digits() if data is not None and data.endswith("load_digits") else None

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, label: SupportsIndex) -> str:
        number = label.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"no class {number}: they go from 0 to {len(self) - 1}.")
        return self._names[number]

    def short(self, label: SupportsIndex) -> str:
        """The first of a class's synonyms, which two classes can share (ImageNet has two cranes)."""
        return self[label].partition(",")[0].strip()

    def find(self, name: str) -> int:
        """The class with that name: one of its synonyms, or all of them. Capitals make no difference.

        Raises:
            ValueError: no class has that name (the message suggests others), or several have it (it lists them).
        """
        found = self._ids.get(_key(name), [])
        if len(found) > 1:
            listed = ", ".join(f"{label} ({self._names[label]})" for label in found)
            raise ValueError(f"several classes are named {name!r}: {listed}. Give the number.")
        if not found:
            near = ", ".join(self._suggestions(_key(name)))
            hint = f"Near are {near}." if near else f"Give a number from 0 to {len(self) - 1}."
            raise ValueError(f"no class is named {name!r}. {hint}")
        return found[0]

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """The classes of several names, or of one, in their order; as diffusers' `DiTPipeline` has it. As `find`."""
        return [self.find(name) for name in ([names] if isinstance(names, str) else names)]

    def _suggestions(self, key: str) -> list[str]:
        """Names of which the wrong one is a word (a "cat" is a "tiger cat" too), then names spelt nearly so."""
        word = re.compile(rf"\b{re.escape(key)}\b") if key else None
        containing = [other for other in self._written if word and word.search(other)]
        near = [*containing, *difflib.get_close_matches(key, self._written, n=_NUM_SUGGESTIONS)]
        return [
            f"{self._written[other]} ({' or '.join(str(label) for label in self._ids[other])})"
            for other in list(dict.fromkeys(near))[:_NUM_SUGGESTIONS]
        ]


def parse_labels(
    *texts: str, num_classes: int, names: LabelNames | None = None, null_label: int | None = None
) -> list[int]:
    """Labels that a user wrote: numbers, ranges and names separated by commas, as in `"0-9, 207, strawberry"`.

    Args:
        texts: one or more such lists.
        num_classes: of the model; labels go from 0 to `num_classes - 1`.
        names: of these classes. Without them, numbers and ranges alone are understood.
        null_label: what the word `null` stands for, if the model has one.

    Returns:
        The labels in the order they were written, repeats included. Ranges include both ends.

    Raises:
        ValueError: a part that is none of these, a number out of range, an ambiguous name, a model without classes;
            the message names the part and what is valid.
    """
    if num_classes < 1:
        raise ValueError(f"the model has no classes to choose from, so leave out {', '.join(texts) or 'classes'}.")
    if names is not None and len(names) != num_classes:
        raise ValueError(f"there are names of {len(names)} classes, but the model has {num_classes}.")
    labels: list[int] = []
    for text in texts:
        for part in text.split(","):
            if part.strip() == _NULL:
                if null_label is None:
                    raise ValueError("the model has no null label, so leave out 'null'.")
                labels.append(null_label)
            else:
                labels.extend(_labels_of(part.strip(), text, num_classes, names))
    return labels


def _labels_of(part: str, text: str, num_classes: int, names: LabelNames | None) -> Sequence[int]:
    valid = f"classes go from 0 to {num_classes - 1}"
    if not part:
        raise ValueError(f"{text!r} has an empty part; write numbers, ranges such as 0-9 or names between commas.")
    if match := _RANGE.fullmatch(part):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(f"range {part!r} runs backwards; write {last}-{first}.")
        if last >= num_classes:
            raise ValueError(f"range {part!r} goes too far: {valid}.")
        return range(first, last + 1)
    if re.fullmatch(r"[+-]?\d+", part):
        if not 0 <= int(part) < num_classes:
            raise ValueError(f"there is no class {part}: {valid}.")
        return [int(part)]
    if names is None:
        raise ValueError(f"{part!r} is neither a number nor a range, and these classes have no names: {valid}.")
    return [names.find(part)]


def _key(name: str) -> str:
    return " ".join(name.casefold().split())
