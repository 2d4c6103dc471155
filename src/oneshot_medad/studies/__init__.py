"""Volumes with a verdict, the regions in them, and what a picture archive takes and gives."""
