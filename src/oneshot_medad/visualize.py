"""Pictures of predictions under the name that users import; `results.pictures` holds them."""

from oneshot_medad.results.pictures import (
    COLOUR_MAP,
    blend,
    captioned,
    colours,
    contact_sheet,
    image_again,
    outlined,
    overlay,
    picture,
    plot,
    strength,
)

__all__ = [
    "COLOUR_MAP",
    "blend",
    "captioned",
    "colours",
    "contact_sheet",
    "image_again",
    "outlined",
    "overlay",
    "picture",
    "plot",
    "strength",
]
