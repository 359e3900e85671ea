"""Tables with rows about videos: read in several processes or on Ray, kept whole, resumed where they stopped."""
