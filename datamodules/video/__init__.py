"""From video files to frames and clips."""
