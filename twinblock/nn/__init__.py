"""Networks: encoders and where they are cut, norms, heads, pooling."""
