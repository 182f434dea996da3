"""Importing this fills :data:`comparisons.COMPONENTS`, in the order of the page."""
# ruff: noqa: F401, I001

import fidelity_models
import fidelity_objectives
import fidelity_gram
import fidelity_total
import fidelity_guidance
import fidelity_training
