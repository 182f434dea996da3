"""``python -m openfino.sampledata MANIFEST PNG``: draw the contact sheet of a sample."""

import sys
from pathlib import Path

from openfino.sampledata.sheet import contact_sheet

if len(sys.argv) != 3:
    sys.exit("usage: python -m openfino.sampledata SAMPLE/manifest.csv SHEET.png")
contact_sheet(Path(sys.argv[1]), Path(sys.argv[2]))
