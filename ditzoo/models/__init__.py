"""The model families. A new one is a file or folder here and a line in `FAMILIES`."""

from ditzoo.models import diffit, dit, mdt, sit, uvit
from ditzoo.models.base import DiffusionTransformer, Intermediates
from ditzoo.models.details import EvaluationResult, ModelDetails
from ditzoo.models.diffit import DiffiT, DiffiTUNet
from ditzoo.models.dit import DiT
from ditzoo.models.families import Architecture, Checkpoint, Family, PublishedFile
from ditzoo.models.mdt import MDT, MDTv2
from ditzoo.models.sit import SiT
from ditzoo.models.tables import PositionTable
from ditzoo.models.uvit import UViT

FAMILIES: tuple[Family, ...] = (dit.FAMILY, uvit.FAMILY, mdt.FAMILY, diffit.FAMILY, sit.FAMILY)

__all__ = [
    "FAMILIES",
    "MDT",
    "Architecture",
    "Checkpoint",
    "DiT",
    "DiffiT",
    "DiffiTUNet",
    "DiffusionTransformer",
    "EvaluationResult",
    "Family",
    "Intermediates",
    "MDTv2",
    "ModelDetails",
    "PositionTable",
    "PublishedFile",
    "SiT",
    "UViT",
]
