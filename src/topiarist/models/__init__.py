"""Networks by name: the zoo, torchvision, timm, or any function of the user's own."""

from topiarist.models.load import (
    MODEL_FORMS,
    ModelFactory,
    fitting_options,
    full_name,
    import_torchvision,
    load_model,
    make_model,
    split_options,
)

__all__ = [
    "MODEL_FORMS",
    "ModelFactory",
    "fitting_options",
    "full_name",
    "import_torchvision",
    "load_model",
    "make_model",
    "split_options",
]
