"""Names, versions and meanings of the metrics. No torch: manifests, keys, cards and plans need these names.

Definitions are those of ``sae_lens.evals`` 6.54 where it has the metric. A version is bumped when a definition changes;
it stands in the measure_key, so old numbers are then measured again instead of being compared with new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """``better`` is "high", "low" or "" (neither); no value is below ``least`` or above ``most`` (None: there is no such end)."""

    name: str
    version: int
    summary: str
    better: str = ""
    least: float | None = 0
    most: float | None = None


_DEFINITIONS = (
    MetricDefinition("l0", 1, "mean number of non-zero features per token"),
    MetricDefinition("explained_variance", 1, "1 - E|x - x̂|² / (E|x|² - |E x|²), pooled over all tokens", "high", None, 1),
    MetricDefinition("mse", 1, "mean over tokens of the squared error summed over d_in", "low"),
    MetricDefinition("cossim", 1, "mean over tokens of the cosine between x and x̂", "high", -1, 1),
    MetricDefinition("l2_ratio", 1, "mean over tokens of |x̂| / |x|"),
    MetricDefinition("ce_loss_without_sae", 1, "next-token cross-entropy of the model as it is (nats)", "low"),
    MetricDefinition("ce_loss_with_sae", 1, "cross-entropy with the hook replaced by the reconstruction (nats)", "low"),
    MetricDefinition("ce_loss_with_ablation", 1, "cross-entropy with the hook set to zero (nats)"),
    MetricDefinition("ce_loss_score", 1, "(CE ablated - CE with SAE) / (CE ablated - CE without SAE)", "high", None),
    MetricDefinition("dead_features", 1, "fraction of features that never fired on these tokens", "low", 0, 1),
)

# Those that need no reconstruction.
OF_FEATURES = ("l0", "dead_features")
# Those that a wrong hook makes worse.
OF_RECONSTRUCTION = ("explained_variance", "mse", "cossim", "ce_loss_with_sae", "ce_loss_score")
METRICS: Mapping[str, MetricDefinition] = MappingProxyType({metric.name: metric for metric in _DEFINITIONS})

NOT_COUNTED = "Positions of BOS, EOS, PAD and SEP tokens do not count."

ROWS_VERSION = 3  # bumped when the same text gives other rows of tokens, or a model is run otherwise on them
ERRORS_VERSION = 2  # bumped when standard errors are taken otherwise; 1 took rows for independent of each other


def metric_versions() -> dict[str, int]:
    """What goes into a measure_key."""
    return {name: definition.version for name, definition in METRICS.items()} | {
        "rows": ROWS_VERSION,
        "errors": ERRORS_VERSION,
    }
