"""The views of a run, as its config and its images have them."""

from collections.abc import Sequence

from twinblock.config.schema import Config
from twinblock.views import View, Views, left_out


def views_of(config: Config, specs: Sequence[View] | None = None) -> Views:
    """What makes the views of a resolved config, or of these specs, without colour where the channels are none."""
    channels, size, _ = config.image_shape
    fitted = [spec.model_copy(update=left_out(spec, channels)) for spec in specs or config.views]
    return Views(fitted, size, **config.data.seen)


def missing_operations(config: Config) -> str | None:
    """Which operations of the recipe its views go without, and why, in words; None where they have all."""
    channels = config.image_shape[0]
    names = {"jitter": "jitter of saturation and hue", "gray": "gray", "solarize": "solarisation"}
    missing = dict.fromkeys(names[field] for spec in config.views for field in left_out(spec, channels))
    if not missing:
        return None
    return f"{', '.join(missing)} left out: {channels} {'channel is' if channels == 1 else 'channels are'} no colours"
