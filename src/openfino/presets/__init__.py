"""Named layers of settings under a recipe's own keys; the YAML files explain themselves."""
