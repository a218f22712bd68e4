"""Decoding of image files with Pillow. Imports no torch."""

from __future__ import annotations

from PIL import Image

# What Pillow raises on a file that is no image, or that is too large to open.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# torchvision's IMG_EXTENSIONS, without the seconds of its import; a test compares them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def rgb(file: Image.Image) -> Image.Image:
    """Three channels of 8 bits; Pillow alone would clip 16-bit greys at 255."""
    if file.mode.startswith("I;16"):
        import numpy as np  # for these files only

        file = Image.fromarray((np.asarray(file).astype(np.int32) >> 8).astype(np.uint8))
    return file.convert("RGB")
