"""How files are damaged: one flipped bit, or a cut."""

import random


def damage(content: bytes, seed: int, *, flips: bool) -> bytes:
    """Flip one bit, or cut at least two bytes off: the last one of a JSON file is a line break."""
    place = random.Random(seed).randrange(len(content) - 1)
    if not flips:
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << random.Random(-seed - 1).randrange(8)
    return bytes(changed)
