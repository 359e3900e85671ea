"""Files that say what a video shows: lists, captions, questions; and where the videos are."""
