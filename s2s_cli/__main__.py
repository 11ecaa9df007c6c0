"""`python -m s2s_cli` is `s2s`."""

from s2s_cli.app import main

if __name__ == "__main__":
    main()
