"""The commands, one a module: what each takes, the library it calls, what it prints. Nothing heavy at import."""
