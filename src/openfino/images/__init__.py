"""From image files to views: reading, crops, photometric operations, masks, the loader."""
