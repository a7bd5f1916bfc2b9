"""``python -m rlrt.sft [overrides]``: a supervised start, a few hundred steps on the data's own solutions.

It is ``rlrt.run`` with ``method=sft``: folder, resume, MLflow, sweeps (``-m``) and checkpoints are a run's. The result starts a
run that samples: ``python -m rlrt.run model.path=FOLDER``.
"""

from __future__ import annotations

import sys

from rlrt import run
from rlrt.errors import brief
from rlrt.records.secrets import masked
from rlrt.records.streams import mask_streams

CHOICE = "method=sft"


def main() -> None:
    """Start ``rlrt.run`` with the supervised method; another one is refused."""
    mask_streams()
    typed = next((a for a in sys.argv[1:] if a.startswith("method=") and a != CHOICE), None)
    if typed is not None:
        print(brief(masked(f"error: {typed}: rlrt.sft learns by {CHOICE}; run {typed} by rlrt.run.")), file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = [CHOICE, *(a for a in sys.argv[1:] if a != CHOICE)]
    run.main()


if __name__ == "__main__":
    main()
