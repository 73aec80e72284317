"""Native models of the family: transformers classes whose state-dict keys are those of the published weights.

Importing this package makes them known to `AutoConfig` and `AutoModel`, unless transformers has such a type.
"""

from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration import Pi3Config, VggtConfig
from .image_processing import Pi3ImageProcessor, VggtImageProcessor
from .pi3 import Pi3Model, Pi3Output
from .vggt import VggtModel, VggtOutput

__all__ = [
    "Pi3Config",
    "Pi3ImageProcessor",
    "Pi3Model",
    "Pi3Output",
    "VggtConfig",
    "VggtImageProcessor",
    "VggtModel",
    "VggtOutput",
]

for _config, _model in ((VggtConfig, VggtModel), (Pi3Config, Pi3Model)):
    if _config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(_config.model_type, _config)
        AutoModel.register(_config, _model)
