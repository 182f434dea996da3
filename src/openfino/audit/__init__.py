"""Which columns? What a table says about itself before anything is trained."""
