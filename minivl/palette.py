"""The colours that all pictures share."""

import numpy as np

# Okabe and Ito's palette, told apart with any colour vision: vermilion, blue, yellow, green, pink, sky blue, orange
COLOURS = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

# of heat maps, from low to high: RGB 0..255, to be interpolated
HEAT = np.array([[13, 8, 65], [94, 20, 130], [190, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)

# backgrounds of black numbers: the palette made pale, and grey
TINTS = np.array(
    [[86, 180, 233], [240, 160, 100], [80, 200, 160], [225, 165, 200],
     [150, 200, 240], [240, 215, 120], [235, 235, 150], [200, 200, 200]], dtype=np.float32
)  # fmt: skip
