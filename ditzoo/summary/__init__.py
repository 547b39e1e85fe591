"""What is known about a model, in words and as a drawing in text."""

from ditzoo.summary.canvas import drawable
from ditzoo.summary.describe import describe
from ditzoo.summary.drawing import draw_blocks

__all__ = ["describe", "draw_blocks", "drawable"]
