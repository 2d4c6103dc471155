"""A fitted detector as one file for other runtimes: `write` makes it and needs torch, `run` reads it and does not."""
