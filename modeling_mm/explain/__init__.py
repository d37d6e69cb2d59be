# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What the model looked at and listened to."""
