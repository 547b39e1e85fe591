"""Data sets for training and judging models."""

from ditzoo.data.digits import DigitsSplit, load_digits_split, to_uint8

__all__ = ["DigitsSplit", "load_digits_split", "to_uint8"]
