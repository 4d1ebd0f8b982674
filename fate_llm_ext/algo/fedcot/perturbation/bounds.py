"""What a strategy that replaces words guarantees for one word, from its parameters alone. Imports nothing heavy."""

from __future__ import annotations

import math
from typing import Dict, Optional

# Of the largest log-ratio to ε. `metric`: vectors of length 1 are at most 2 apart. The proofs are in `mechanisms`.
_FACTORS: Dict[str, float] = {"fixed_vocabulary": 1.0, "metric": 2.0}


def word_bound(strategy: str, epsilon: Optional[float]) -> float:
    """Proven bound of |log P(y|x) - log P(y|x')| over all outputs and inputs of one word; infinity: there is none."""
    return math.inf if epsilon is None else _FACTORS.get(strategy, math.inf) * epsilon
