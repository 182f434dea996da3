"""State dicts of other libraries, to and from the names of transformers: pure functions, one file per format."""
