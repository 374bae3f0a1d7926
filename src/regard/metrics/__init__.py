"""Scores of captions against references; torch-free, over tokens."""
