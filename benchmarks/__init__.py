"""Measurements of speed, each side by side with the plain published formulation."""
