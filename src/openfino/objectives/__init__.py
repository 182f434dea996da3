"""The terms of the total loss, one file each, behind the interface of :mod:`openfino.objectives.base`."""
