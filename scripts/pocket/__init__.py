# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""How the released checkpoints are made: corpora, wordings, readers of packages, a comparison study."""
