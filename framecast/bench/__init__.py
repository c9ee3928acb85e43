# SPDX-License-Identifier: Apache-2.0
"""What things cost on this machine: time, memory, operations, and how near that is to what the machine can do.

`run.py` starts one process per measurement (`alone.py`), so that the memory of one does not hide that of another;
`measure.py` holds clock, memory, counting and the machine's own rate; the others hold what is measured.
"""
