"""What everything may use: random streams, modes of modules, and plain pickles."""
