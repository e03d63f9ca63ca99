"""Independent random streams from one seed.

    generator(seed, "prompts")        # a numpy Generator
    generator(seed, "teacher", 7)     # another, unrelated one

Streams are distinguished by hashing (seed, name, index), never by adding integers: adding would make item 1 of seed 2
the same as item 2 of seed 1.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, name: str, index: int | str = 0) -> int:
    """A 63-bit seed for the stream `name` at `index`, the same on every machine and Python."""
    digest = hashlib.blake2b(f"{seed}\x1f{name}\x1f{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, name: str, index: int | str = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stream_seed(seed, name, index)))
