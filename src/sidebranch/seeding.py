"""Random numbers as functions of their keys: the same on every rank and device, and after a resume.

Nothing here has state. A scalar seed is a hash of its keys; a batch of numbers is a hash of (seed, index), computed on
the device of the index.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_MASK_63 = (1 << 63) - 1


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any number of keys; different keys give unrelated seeds."""
    parts = (str(key).replace("\\", "\\\\").replace("/", "\\/") for key in keys)
    digest = hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK_63


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by the keys."""
    return torch.Generator().manual_seed(seed_of(*keys))


def uniform(index: Int[Tensor, " n"], *keys: int | str) -> Float[Tensor, " n"]:
    """One number in [0, 1) per index; it does not depend on the batch or device of the index.

    Counter-based: splitmix64's finaliser (Steele, Lea & Flood 2014) over the index, keyed by `seed_of(*keys)`.
    """
    bits = index.to(torch.int64) * _signed(0x9E3779B97F4A7C15) + seed_of(*keys)
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shift(bits, 31)
    return _shift(bits, 40).to(torch.float32) / (1 << 24)


def _signed(word: int) -> int:
    """A 64-bit pattern as int64, for torch's wrapping arithmetic."""
    return word - (1 << 64) if word >> 63 else word


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical right shift; torch's shift of int64 keeps the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
