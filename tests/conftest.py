# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""How long an example takes says nothing on a busy machine: Hypothesis must not judge by it."""

from __future__ import annotations

import os

from hypothesis import settings

# Hypothesis has a profile of its own for machines that say so; it has no deadline either.
if "CI" not in os.environ:
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")
