"""The page of `zoo app`: classify a clip, search an index, ask about a video (docs/app.md)."""

import zoo.app.folder  # noqa: F401  (before anything imports Gradio)
