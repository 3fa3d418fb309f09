"""Search spaces: primitives, cells, and each space's facts as data."""
