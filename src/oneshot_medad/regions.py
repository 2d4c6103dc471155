"""`Region` under the name that users import and that pickles hold; `results.regions` has it."""

from oneshot_medad.results.regions import Region, find_regions

__all__ = ["Region", "find_regions"]
