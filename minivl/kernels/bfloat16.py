"""bfloat16 for NumPy, which lacks it: 16 bits as uint16. It is the upper half of a float32, so upcasting is a shift.

bfloat16 bits        1 10000010 1010011
the same float32     1 10000010 1010011 0000000000000000
"""

import numpy as np


def to_float32(stored):
    """bfloat16 bits (uint16) as float32, exactly: they are its upper half. float32 is returned unchanged."""
    if stored.dtype == np.float32:
        return stored
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values):
    """float32 rounded to the nearest bfloat16, ties to even, as bits (uint16). NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(values), bits | np.uint32(0x400000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)
