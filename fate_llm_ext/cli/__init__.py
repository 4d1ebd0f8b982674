"""The `fate-llm-ext` command. Subcommands are imported only when called."""
