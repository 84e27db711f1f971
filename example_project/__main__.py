"""`python -m example_project`: run the demo."""

import sys

from example_project.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
