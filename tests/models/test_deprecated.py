"""Names that work until the release that their warning names."""

import pytest

from ditzoo import models
from ditzoo.models import base


@pytest.mark.parametrize("name", ["Architecture", "Checkpoint", "Family"])
def test_what_families_declare_themselves_in_was_part_of_base(name):
    message = rf"^ditzoo\.models\.base\.{name} is deprecated and goes in ditzoo 0\.3; use ditzoo\.models\.{name}\.$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        found = getattr(base, name)
    assert found is getattr(models, name)
    assert caught[0].filename == __file__


def test_another_name_is_none_of_base():
    with pytest.raises(AttributeError, match=r"module 'ditzoo\.models\.base' has no attribute 'Familly'"):
        _ = base.Familly
