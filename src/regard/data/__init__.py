"""Data sets of photos and captions, drawn scenes, cached features and batches."""
