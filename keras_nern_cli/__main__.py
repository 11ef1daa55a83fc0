"""`python -m keras_nern_cli`, where the script `keras-nern` is not on the path."""

import sys

from keras_nern_cli import main

sys.exit(main())
