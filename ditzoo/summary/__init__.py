"""What is known about a model, in words and as a drawing in text."""

from ditzoo.summary.describe import describe
from ditzoo.summary.drawing import draw_blocks, drawable

__all__ = ["describe", "draw_blocks", "drawable"]
