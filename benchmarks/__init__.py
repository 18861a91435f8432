"""What is measured, and what is read from the machine code; `make bench`, `make device-code`."""
