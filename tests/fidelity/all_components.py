"""Importing this fills :data:`comparisons.COMPONENTS`, in the order of the page."""

import fidelity_gram  # noqa: F401
import fidelity_guidance  # noqa: F401
import fidelity_models  # noqa: F401
import fidelity_objectives  # noqa: F401
import fidelity_total  # noqa: F401
import fidelity_training  # noqa: F401
