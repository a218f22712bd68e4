"""`python -m sidebranch`."""

from sidebranch.cli import main

raise SystemExit(main())
