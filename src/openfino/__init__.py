"""openfino: adapt pretrained vision transformers with the metadata that images already carry."""

__version__ = "0.1.0"
