"""The training loop (:mod:`openfino.training.loop`) and what it is made of."""
