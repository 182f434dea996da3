"""The sample data set: drawn fluorescence images, and a manifest whose columns depend on each other.

:func:`draw_sample` writes it, :func:`contact_sheet` shows it, :func:`openfino.sampledata.draw.render_with_mask` knows
where its cells are. ``docs/sample.md`` describes it.
"""

from openfino.sampledata.draw import draw_sample as draw_sample
from openfino.sampledata.sheet import contact_sheet as contact_sheet
