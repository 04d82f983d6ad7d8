"""What the extended analyses share with the study that they belong to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all analyses share with the study they belong to."""

    target: float
    """FLOPs extrapolated to."""
    per: float
    """C / (N D)."""
    holdout: float
    """FLOPs from which runs are held out."""
    delta: float
    """Huber's, of laws of loss."""
    replicates: int
    """Of every bootstrap."""
    level: float
    """Of every interval."""
    seed: int
    """Of all resampling."""
    clusters: bool
    """Whether whole runs are resampled."""
