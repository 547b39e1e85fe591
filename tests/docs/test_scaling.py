"""Sizes on the page on scaling out are those that are computed."""

import re

import pytest

from ditzoo.train.config import make_config
from ditzoo.train.estimate import estimate
from ditzoo.train.network import meta_network
from tests.docs.pages import text_of


@pytest.mark.slow
def test_the_table_of_memory_is_the_estimate() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text_of("docs/scaling.md"), re.MULTILINE)
    found = []
    for processes in (8, 16, 32, 64):
        row = [str(processes), str(256 // processes)]
        for fsdp in (False, True):
            config = make_config({"preset": "dit_xl_2.in256", "precision": "bfloat16", "fsdp": fsdp})
            assert config.batch_size == 256
            memory = estimate(config, meta_network(config), processes=processes).memory
            row.append(f"{memory.total / 1e9:.1f}")
        found.append(tuple(row))
    assert rows == found
