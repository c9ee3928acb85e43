# SPDX-License-Identifier: Apache-2.0
"""`python -m framecast` is `framecast`: launchers that start modules need it."""

import sys

from framecast.cli.main import main

sys.exit(main())
