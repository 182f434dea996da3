"""Procedural images: endless, seeded, of nobody's making but the program's, to pretrain a backbone on.

:func:`draw_image` draws one of the :data:`FAMILIES`; ``python -m openfino.procedural.sheet OUT.png`` shows them.

That networks learn to see from images without any real content, if these are structured and varied enough, is
shown by Baradad et al., "Learning to See by Looking at Noise" (NeurIPS 2021), and Kataoka et al., "Pre-training
without Natural Images" (FractalDB, ACCV 2020).
"""

from openfino.procedural.draw import FAMILIES as FAMILIES
from openfino.procedural.draw import draw_image as draw_image
from openfino.procedural.draw import draw_of_family as draw_of_family
from openfino.procedural.names import image_name as image_name
from openfino.procedural.names import is_image_name as is_image_name
from openfino.procedural.names import named_image as named_image
