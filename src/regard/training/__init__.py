"""Training a captioner."""
