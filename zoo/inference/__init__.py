"""Answers about a video: classes, values, features, timelines, pictures of results."""
