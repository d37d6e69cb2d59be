# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Everything that makes the released checkpoint mm-whisper-tiny, and a comparison study."""
