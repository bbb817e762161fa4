"""Whole folders of photos through the predictor, outside the service."""
