"""A run as one HTML page. Python computes the numbers, page.js draws them in the browser.

html_page.py    the page of a trace, or of a run in progress
collect.py      what the page shows of each tensor, taken as it passes
attention.py    the decoder's attention maps, packed; tower.py: those of the vision tower
next_token.py   prompt and answer, with the likeliest tokens; images.py: the images and their windows
causes.py       runs with one thing changed; beside.py: two runs on one page
page_file.py    the template filled with the data, and written
page.js         draws all of it: attention on the images, the tabs; page.strip.js: the strip that follows one pixel
page.html       the template; page.beside.html: that of two runs; page.css: the style
"""

from minivl.helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, needed="html_page", page="html_page", page_of_run="html_page", write_page="html_page"
)
