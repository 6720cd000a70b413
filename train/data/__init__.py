"""What is read: files and data sets of texts and sentence pairs, cut into rows, in batches."""
