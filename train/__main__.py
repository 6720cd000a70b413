"""python -m magnet_train --config demo   (the same as `magnet train --config demo`)"""

from .run import main

main()
