"""`python -m spectramind_fused` is `spectramind`."""

from spectramind_fused.cli import main

if __name__ == "__main__":
    main()
