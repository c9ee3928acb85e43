# SPDX-License-Identifier: Apache-2.0
"""Gaussian diffusion without networks: noise schedules, the process at one level, samplers."""
