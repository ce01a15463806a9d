"""What a run tells of itself: figures, traces, trackers."""
