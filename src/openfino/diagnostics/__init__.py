"""What a backbone sees, as pictures and numbers: ``openfino viz``, and the pictures of a run."""
