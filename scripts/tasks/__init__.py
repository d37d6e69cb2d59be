# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
