"""Names, patterns, families and tags, and what the errors say when one of them is wrong."""

import re

import pytest

import ditzoo
from ditzoo import registry
from ditzoo.models import FAMILIES, DiT

TAGGED = ditzoo.list_models(pretrained=True)
BUILT_IN = [family.name for family in FAMILIES]


def test_all_names():
    names = ditzoo.list_models()
    assert len(names) == len(set(names))
    assert {"dit_xl_2", "uvit_h_4", "mdt_s_2", "mdtv2_b_2", "diffit_xl_2"} <= set(names)
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name) for name in names)


def test_patterns():
    sizes = ["b", "l", "s", "ti", "xl"]
    assert ditzoo.list_models("dit_*_2") == [f"dit_{size}_2" for size in sizes]
    assert ditzoo.list_models("mdt*_xl_?") == ["mdt_xl_2", "mdtv2_xl_2"]
    assert ditzoo.list_models("nothing*") == []
    assert ditzoo.list_models("*.in64") == ["uvit_l_4.in64", "uvit_m_4.in64"]
    assert ditzoo.list_models("dit_xl_2.*") == ["dit_xl_2.in256", "dit_xl_2.in512"]


def test_families():
    assert ditzoo.list_families() == BUILT_IN
    assert {"dit", "uvit", "mdt", "diffit"} <= set(BUILT_IN)
    found = [name for family in BUILT_IN for name in ditzoo.list_models(family=family)]
    assert sorted(found) == sorted(ditzoo.list_models())
    assert ditzoo.list_models("*_xl_*", family="mdt") == ["mdt_xl_2", "mdtv2_xl_2"]
    for family in BUILT_IN:
        assert {ditzoo.model_info(n).family for n in ditzoo.list_models(family=family)} == {family}


def test_published_weights():
    bare = {name.partition(".")[0] for name in TAGGED}
    assert len(TAGGED) == len(set(TAGGED))
    assert set(ditzoo.list_models(pretrained=False)) == set(ditzoo.list_models()) - bare
    assert ditzoo.list_models(family="uvit", pretrained=True) == [n for n in TAGGED if n.startswith("uvit")]
    assert ditzoo.list_models("*.in512", pretrained=True) == ditzoo.list_models("*.in512")


def test_names_sort_naturally(registry_sandbox):
    for number in (10, 9, 2):
        registry.register_model(f"zz_s_{number}", DiT, family="zz")
    assert ditzoo.list_models("zz*") == ["zz_s_2", "zz_s_9", "zz_s_10"]
    assert ditzoo.list_models("uvit_l_4.*") == ["uvit_l_4.in64", "uvit_l_4.in512"]


def test_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=rf"Unknown family 'sdxl'; the families are {', '.join(BUILT_IN)}\."):
        ditzoo.list_models(family="sdxl")
