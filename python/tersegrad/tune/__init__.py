"""Choose a codec by the network: measure candidates on real updates, keep the best that fits.

See `tune` for one choice, `AdaptiveCodec` for a link whose speed changes, and ``tersegrad tune --help`` for the command.
"""

from .adaptive import AdaptiveCodec
from .measure import CANDIDATES, Row, measure
from .recommend import Budget, Recommendation, choose, tune
from .updates import Updates, read_updates

__all__ = [
    "CANDIDATES",
    "AdaptiveCodec",
    "Budget",
    "Recommendation",
    "Row",
    "Updates",
    "choose",
    "measure",
    "read_updates",
    "tune",
]
