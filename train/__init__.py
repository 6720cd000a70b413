"""Joint training of MNTP, SSCL and MSG (section 3.2). Imported as `magnet_train`."""
