"""`python -m avis_stream`, the same program as `avis-stream`."""

import sys

from avis_stream.cli import main

sys.exit(main())
