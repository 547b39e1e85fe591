"""ditzoo and diffusers: any model of the zoo inside diffusers' own loops.

diffusers is imported when something is made, not before: `pip install "ditzoo[diffusers]"`.
"""

from ditzoo.interop.schedulers import make_scheduler
from ditzoo.interop.transformer import DiffusersTransformer

__all__ = ["DiffusersTransformer", "make_scheduler"]
