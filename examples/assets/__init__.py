"""The shipped adapter (magnet fetch magnet-smollm2-135m) and the stories of the demo."""
