# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Benchmarks: this daemon and the C daemon side by side (`python -m bench`)."""
