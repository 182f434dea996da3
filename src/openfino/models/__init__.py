"""Backbones, heads, channel expansion, the teacher's moving average, and how models are stored."""
