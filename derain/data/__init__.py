"""Data sets and the tools that make and check them; the images themselves are never committed."""
