"""Detectors as folders: plain JSON and safetensors, written atomically, read without trust."""
