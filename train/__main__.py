"""python -m magnet_train --config default   (the same as `magnet train --config default`)"""

from .run import main

main()
