"""Pages for people: self-contained HTML without a network."""
