"""Search in your own videos: index, search, page of results."""
