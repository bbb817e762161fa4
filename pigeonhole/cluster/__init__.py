"""The same app and predictor on many machines, under Ray."""
