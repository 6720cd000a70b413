"""The `magnet` command, one small file a subcommand."""
