"""ditzoo and diffusers: any model of the zoo inside diffusers' own loops, and DiT's weights to and from its classes.

diffusers is imported when something is made, not before: `pip install "ditzoo[diffusers]"`.
"""

from ditzoo.interop.dit import from_diffusers, patch_diffusers, to_diffusers
from ditzoo.interop.folders import load_diffusers, save_diffusers
from ditzoo.interop.schedulers import make_scheduler
from ditzoo.interop.transformer import DiffusersTransformer

__all__ = [
    "DiffusersTransformer",
    "from_diffusers",
    "load_diffusers",
    "make_scheduler",
    "patch_diffusers",
    "save_diffusers",
    "to_diffusers",
]
