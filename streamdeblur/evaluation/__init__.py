"""Metrics, protocols and reports: how well and how fast restorers do on pairs of blurry and sharp images."""
