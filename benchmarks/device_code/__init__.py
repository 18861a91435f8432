"""The machine code of every kernel variant, compiled and read without a GPU."""
