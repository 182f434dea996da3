"""What a metadata column means: specification, vocabulary and tensors of each factor."""
