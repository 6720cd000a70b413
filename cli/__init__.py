"""The `magnet` command, one small file per subcommand."""
